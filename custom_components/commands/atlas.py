"""`morphzoo atlas`: render a template, sweep over an attribute, register a scan to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..checks import writable_folder
from ..vocabulary import Entry
from .bundles import find_bundle, takes_scans, those_that_take_scans
from .workflow import build_workflow

if TYPE_CHECKING:
    from ..evaluation.result import Registration
    from ..methods.conditional_atlas.attributes import Attribute, AttributeEncoder, Attributes


@dataclass(frozen=True)
class Rendering:
    """A rendered template, and a scan registered to it if there was one.

    Args:
        files: paths by kind: "template", "label", "picture", and those of a sweep.
        attributes: those of the template.
        notes: what was assumed.
        registration: of the scan.
    """

    files: Mapping[str, Path]
    attributes: Attributes
    notes: list[str] = field(default_factory=list)
    registration: Registration | None = None

    def __str__(self) -> str:
        lines = [*self.notes, *map(str, self.files.values())]
        return "\n".join(lines if self.registration is None else [*lines, str(self.registration)])


def atlas(
    scan: str | None = None,
    output: str = "atlas",
    *,
    attributes: str | Attributes | None = None,
    sweep: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    optimize: int | Literal["auto"] | None = None,
    affine: str | bool | None = None,
    bundle: str = "conditional_atlas",
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> Rendering:
    """Render the template (atlas) for given attributes, and register a scan to it and back.

    OUTPUT gets template_<attributes>.nii.gz with its affine, a picture, and the template's label map if it has one.
    With a scan, OUTPUT/<scan> gets the scan on the template's grid (warped.nii.gz), the template and its labels on the
    scan's own grid (warped_fixed.nii.gz, warped_fixed_label.nii.gz), and the transforms: the template is the fixed
    image.

    Args:
        scan: image to register; none to render only.
        output: folder for the results.
        attributes: for instance age=40,sex=F; a number that is not given is the training data's mean, a category must
            be given.
        sweep: also render the template along an attribute's range, as a 4-D image and an animated picture:
            age=20:80:13 is 13 values from 20 to 80, sex=F:M both categories.
        label: the scan's label map, which is compared with the template's and must have its ids (those of the
            shipped weights are in the bundle's docs).
        mask: image of where the scan counts during alignment and refinement.
        optimize: iterations of refinement after the network, 0 for none, or "auto" for as many as bring the images
            closer; default: the bundle's.
        affine: how scan and template are aligned, as for `register`, or a transform file, template to scan. Default:
            the bundle's, "itk".
        bundle: name of a bundle with a template, or its folder.
        weights: another checkpoint, whose size, attributes and labels count; default: the bundle's own.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
        **settings: any other setting of the bundle's inference.json.
    Examples:
        `morphzoo atlas -o out --attributes ventricles=4`
        `morphzoo atlas scan.nii.gz -o out --attributes ventricles=4`
    Returns:
        The paths of the template's files, and the scan's registration.
    Raises:
        ValueError: if the bundle has no template, or the template no such attribute or value.
    """
    from ..data.names import check_free, item_name
    from ..methods.conditional_atlas.files import write_sweep, write_template

    if not takes_scans(find_bundle(bundle)):
        raise ValueError(f"{bundle} has no template; {those_that_take_scans()}")
    settings |= {"weights": weights, "device": device, "optimize": optimize, "affine": affine}
    settings["output_dir"] = str(output)
    files = {"image": scan, "label": label, "mask": mask}
    item: Entry = {key: str(Path(path).absolute()) for key, path in files.items() if path is not None}
    workflow = build_workflow(bundle, [item], overlay, settings)
    folder = writable_folder(output)
    if scan is not None:
        check_free(folder, [{**item, "id": item_name(item)}])
    network = workflow.parser.get_parsed_content("network")
    encoder = network.template.encoder
    swept, values = _parse_sweep(sweep, encoder) if sweep else ("", [])
    free = {swept: values[0]} if values and scan is None else {}
    given, notes = _complete(_parse_attributes(attributes), encoder, free)
    written = write_template(folder, network, given)
    if sweep:
        written |= write_sweep(folder, network, given, swept, values)
    registration = None
    if scan is not None:
        item |= given
        workflow.run()
        registration = workflow.parser.get_parsed_content("cohort").cohort[0]
    return Rendering({kind: Path(path) for kind, path in written.items()}, given, notes, registration)


def _complete(
    given: dict[str, Attribute], encoder: AttributeEncoder, free: Attributes
) -> tuple[dict[str, Attribute], list[str]]:
    """All attributes in the template's order, and what was assumed.

    Args:
        free: an attribute that runs over values and needs none of its own, and its first value.
    """
    if set(given) - set(encoder.names):
        encoder.values(given)  # says which there are
    notes = []
    for name, categories, mean in zip(encoder.names, encoder.categories, encoder.mean.tolist(), strict=True):
        if name not in given and not categories:
            given[name] = float(f"{mean:.4g}")
            if name not in free:
                notes.append(f"{name}: not given, the training data's mean {given[name]:g} is taken")
        elif name not in given and name in free:
            given[name] = free[name]
    return {name: given[name] for name in encoder.names if name in given}, notes


def _parse_attributes(text: str | Attributes | None) -> dict[str, Attribute]:
    """Of "age=40,sex=F": names to numbers, or to words where it is no number."""
    from ..data.lists import number_or_text

    if isinstance(text, Mapping):
        return dict(text)
    parts = [part.partition("=") for part in str(text or "").split(",") if part]
    if text is True or any(not name or not value for name, _, value in parts):
        raise ValueError(f"--attributes: expected name=value, several separated by commas, got {text!r}")
    return {name.strip(): number_or_text(value.strip()) for name, _, value in parts}


def _parse_sweep(text: str, encoder: AttributeEncoder) -> tuple[str, list[float | str]]:
    """Of "age=20:80:13" the name and 13 numbers, of "sex=F:M" the name and the two words."""
    from ..data.lists import number_or_text

    name, _, rest = str(text).partition("=")
    values = [number_or_text(value) for value in rest.split(":")]
    if name not in encoder.names:
        raise ValueError(f"--sweep: the template's attributes are {', '.join(encoder.names) or 'none'}, got {text!r}")
    if encoder.categories[encoder.names.index(name)]:
        return name, values
    if len(values) != 3 or not all(isinstance(v, float) for v in values) or values[2] not in range(2, 10_000):
        raise ValueError(f"--sweep: expected name=first:last:number with a whole number of at least 2, got {text!r}")
    first, last, number = float(values[0]), float(values[1]), int(values[2])
    return name, [float(f"{first + (last - first) * i / (number - 1):.6g}") for i in range(number)]
