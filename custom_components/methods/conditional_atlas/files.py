"""Templates as files: render them, sweep over an attribute, load a scan onto the grid of its template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ...data.names import file_stem, item_name, safe_name
from ...evaluation.overlap import present_labels
from ...files import write_metrics, write_table
from ...notices import collecting, warn
from ...results import publishing, read_manifest
from ...space.components import load_components
from ...space.files import write_image
from ...space.grids import voxel_spacing
from ...transforms.load import GridOptions, LoadPaird
from ...vocabulary import Config, Data, Item
from .attributes import Attribute, Attributes
from .network import AtlasNetwork
from .pictures import template_animation, template_picture
from .template import template_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack


@torch.no_grad()
def render(network: AtlasNetwork, attributes: Attributes) -> tuple[Tensor, Tensor | None]:
    """The template image (C, *S) for attributes given by name, and its label map (1, *S) int32 if it has one.

    Negative intensities, where the learned image overshoots beside edges, are set to 0; registration has them.

    Raises:
        ValueError: if an attribute is missing, unknown or impossible.
    """
    template = network.template
    raw = template.encoder.values(attributes)
    outside = template.encoder.outside(raw)
    if outside:
        warn(f"beyond the training data: {', '.join(outside)}")
    images, logits = template.render(raw[None].to(template.image.device))
    image = images[0].float().clamp(min=0).cpu()
    return image, template.most_likely(logits)[0].cpu() if template.label_ids else None


def write_template(
    folder: Path, network: AtlasNetwork, attributes: Attributes, *, picture: bool = True
) -> dict[str, str]:
    """Write a template with its affine into a folder; the paths of the files by kind.

    template.nii.gz, template_label.nii.gz (if it has labels), template.png (with `picture`), template.json: the
    attributes. With attributes the names carry them: template_age-40_sex-F.nii.gz.
    """
    image, labels = render(network, attributes)
    parts = [re.sub(r"[^\w.+-]+", "-", f"{name}-{_text(value)}") for name, value in attributes.items()]
    stem = safe_name("_".join(["template", *parts]))
    affine = network.affine.cpu().numpy()
    of = {name: _text(value) for name, value in attributes.items()}
    kinds = {"template": ".nii.gz"} | ({} if labels is None else {"label": "_label.nii.gz"})
    files = {kind: folder / f"{stem}{ending}" for kind, ending in kinds.items()}
    if not picture and _is_there(folder, stem, files, {"template": image[:1], "label": labels}):
        return {kind: str(path) for kind, path in files.items()}
    with publishing(folder, stem, of) as scratch:
        write_image(scratch / f"{stem}.nii.gz", image[:1], affine)
        if labels is not None:
            write_image(scratch / f"{stem}_label.nii.gz", labels, affine)
        write_metrics(scratch / f"{stem}.json", {"attributes": dict(attributes)})
        if picture:
            heading = ", ".join(f"{name} {_text(value)}" for name, value in attributes.items())
            template_picture(scratch / f"{stem}.png", image, labels, spacing_mm=_spacing(affine), title=heading)
    files |= {"picture": folder / f"{stem}.png"} if picture else {}
    return {kind: str(path) for kind, path in files.items()}


def _is_there(folder: Path, stem: str, files: Mapping[str, Path], content: Mapping[str, Tensor | None]) -> bool:
    """Whether a whole result in the folder holds just these images: then its picture shows them, too."""
    known = read_manifest(folder).get(stem, {})
    if known.get("unfinished") or not {path.name for path in files.values()} <= {*known.get("files", [])}:
        return False
    try:
        found = {kind: load_components(str(path)).data for kind, path in files.items()}
    except (OSError, ValueError):
        return False
    return all(np.array_equal(values, np.asarray(content[kind])) for kind, values in found.items())


def write_sweep(
    folder: Path, network: AtlasNetwork, attributes: Attributes, name: str, values: Sequence[Attribute]
) -> dict[str, str]:
    """Write the templates for several values of one attribute: sweep.nii.gz (and sweep_label.nii.gz), 4-D, sweep.gif,
    an animation, and sweep.csv, the attributes of each frame.

    Args:
        folder: gets the files.
        network: has the template.
        attributes: all attributes by name; that of `name` is replaced.
        name: the attribute that runs over the values.
        values: at least two.
    Raises:
        ValueError: for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"expected at least two values of {name} to sweep over, got {len(values)}")
    rows = [{**attributes, name: value} for value in values]
    rendered = [render(network, row) for row in rows]
    affine = network.affine.cpu().numpy()
    images = torch.cat([image[:1] for image, _ in rendered])
    labels = [label for _, label in rendered if label is not None]
    with publishing(folder, "sweep") as scratch:
        write_image(scratch / "sweep.nii.gz", images, affine)
        if labels:
            write_image(scratch / "sweep_label.nii.gz", torch.cat(labels), affine)
        write_table(scratch / "sweep.csv", [{"frame": i, **row} for i, row in enumerate(rows)])
        headings = [f"{name} {_text(value)}" for value in values]
        template_animation(scratch / "sweep.gif", list(images[:, None]), headings, spacing_mm=_spacing(affine))
        names = sorted(path.name for path in scratch.iterdir())
    return {path.partition(".")[0] + "_" + path.rpartition(".")[2]: str(folder / path) for path in names}


class LoadToTemplated(Transform):
    """Load a scan onto the grid of the template for its attributes, and write that template as a file.

    Takes an item with the path of a scan under `image` (or `moving`), optionally `label`, `mask`, `affine`, `id`, and
    the network's attributes by name. Returns an item as `LoadPaird` makes it of the pair whose moving image is the scan
    and whose fixed one is the template, with the attributes. The template's file (`write_template`) goes to
    `output_dir`; the weights must be loaded by then.

    Args:
        network: `AtlasNetwork`.
        output_dir: for the template.
        affine: "none", "itk", "torch" or a file, as in `LoadPaird`: from the template to the scan.
        template_label: path of a label map on the template to carry instead of the template's own.
        **options: of `LoadPaird`.
    Raises:
        ValueError: if the item has no scan or lacks an attribute.
    """

    def __init__(
        self,
        network: AtlasNetwork,
        output_dir: str,
        affine: str = "none",
        *,
        template_label: str | None = None,
        **options: Unpack[GridOptions],
    ) -> None:
        self.network, self.output_dir, self.template_label = network, Path(output_dir), template_label
        self.load = LoadPaird(None, affine, **options)

    def __call__(self, data: Data) -> Item:
        scan = data.get("image") or data.get("moving")
        if not scan or data.get("fixed"):
            raise ValueError(f"expected an item with one scan under 'image', got the keys {sorted(map(str, data))}")
        names = self.network.template.encoder.names
        attributes: dict[str, Attribute] = {name: data[name] for name in names if name in data}
        with collecting() as warnings:
            loaded = self._load(str(scan), data, attributes)
        return loaded | {**attributes} | {"warnings": "\n".join(warnings)}

    def _load(self, scan: str, data: Data, attributes: Attributes) -> Item:
        files = write_template(self.output_dir, self.network, attributes, picture=False)
        pair = {"fixed": files["template"], "label_fixed": self.template_label or files.get("label")}
        loaded = self.load(_pair(scan, data, pair))
        if not np.allclose(loaded["grid_affine"], self.network.affine.cpu(), atol=1e-3):
            raise ValueError("expected a template whose axes are R, A, S: train it with LoadScand")
        if "label_moving" in loaded and "label" in files and self.template_label is None:
            self._warn_of_other_ids(loaded["label_moving"], file_stem(scan))
        return loaded

    def _warn_of_other_ids(self, labels: Tensor, name: str) -> None:
        ids = self.network.template.label_ids
        unknown = sorted({*present_labels(labels)} - {*ids})
        if unknown:
            warn(f"{name}: the template, with labels {ids}, lacks its label ids {unknown[:9]}; overlap is of equal ids")


def _pair(scan: str, data: Data, template: Mapping[str, str | None]) -> Item:
    """The item of a scan as one of a pair; `template` is its fixed half."""
    named = {"image": scan, **{key: data[key] for key in ("id", "subject", "session") if key in data}}
    pair = {"moving": scan, "id": item_name(named), "affine": data.get("affine"), **template}
    pair |= {f"{key}_moving": data.get(key) or data.get(f"{key}_moving") for key in ("label", "mask")}
    return {key: value for key, value in pair.items() if value}


def inference_settings(weights: Mapping[str, Tensor]) -> Config:
    """The settings of inference.json that follow from the weights of a template.

    Raises:
        ValueError: if they are not the weights of one.
    """
    made = template_settings(weights)
    made["conditions"] = made.pop("attributes")
    made["template_labels"] = made.pop("labels")
    own = ("features", "hidden", "paper")
    return {f"network_def#template#{key}" if key in own else key: value for key, value in made.items()}


def _spacing(affine: np.ndarray) -> list[float]:
    return [float(s) for s in voxel_spacing(affine)]


def _text(value: Attribute) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
