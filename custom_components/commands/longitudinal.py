"""`morphzoo longitudinal`: what changed between two scans of one person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bundles import DEFAULT_BUNDLE, overlay_path
from .origin import origin_of
from .registrar import Registrar
from .workflow import as_list

if TYPE_CHECKING:
    from ..cohorts.longitudinal_files import LongitudinalResult


def longitudinal(
    first: str,
    second: str,
    output: str = "longitudinal",
    *,
    label_first: str | None = None,
    label_second: str | None = None,
    affine: str = "torch",
    bundle: str = DEFAULT_BUNDLE,
    spacing: float = 1.0,
    page: str = "views",
    label_names: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> LongitudinalResult:
    """Compare two scans of one person: where tissue grew or shrank, in percent, and by how much each label did.

    Both are aligned rigidly and resampled once, into a space half-way between them; they are registered there in both
    directions. Exchanging them negates what is found, and two equal scans have no change at all. OUTPUT has both scans
    and their average in that space, percent_change.nii.gz, volumes.csv, the transforms, and a page, report.html.

    Args:
        first, second: the earlier and the later scan, of one contrast.
        output: folder for the results.
        label_first, label_second: label maps of the scans; one suffices, both leave no side preferred.
        affine: what aligns rigidly, "torch" or "itk".
        bundle: whose configuration is used, without its network: a smooth velocity is optimised.
        spacing: of the grid that they are compared on, mm; finer images are smoothed for it.
        page: "views", slices to blink and the change in colours; "volumes", also a viewer; "none".
        label_names: table of the labels' names, CSV (id,name) or TSV as BIDS has it (index, name).
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json, for instance --smoothness 4, --optimize 40.
    Examples:
        `morphzoo longitudinal first.nii.gz second.nii.gz -o change`
    Returns:
        The measures, and the volumes of each label.
    """
    from ..cohorts.longitudinal import Change, Halfway
    from ..cohorts.longitudinal_files import ChangePage, Labels, write_change
    from ..data.label_names import find_label_names
    from ..notices import collecting
    from ..results import aside
    from ..space.volumes import load_image

    overlays = [overlay_path("longitudinal"), *as_list(overlay), overlay_path("fields_only")]
    register = Registrar(bundle, overlay=overlays, spacing=spacing, **settings)
    table = find_label_names(label_names)
    known = {"affine": affine, "spacing": spacing, "label_names": table.path, **settings}
    shown = ChangePage(page, origin_of(register.bundle, as_list(overlay), known))
    with collecting() as warnings:
        labels = Labels.of((label_first, label_second), table.names)
        halfway = Halfway.between(load_image(first), load_image(second), affine)
        with aside(output) as scratch:
            velocity = halfway.velocity(register, scratch)
        return write_change(Path(output), Change(halfway, velocity), labels, page=shown, warnings=warnings)
