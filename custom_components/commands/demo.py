"""`morphzoo demo`: two subjects whose deformation is known, registered and compared with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import writable_folder
from ..vocabulary import Metrics
from .bundles import DEFAULT_BUNDLE, find_bundle
from .workflow import check_settings, infer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..evaluation.result import Registration


@dataclass(frozen=True)
class Demonstration:
    """A registration whose true deformation is known.

    Args:
        registration: of the two subjects.
        numbers: what the table shows, by its text: the value before and after; no value before where there is none.
        metrics: all measures, as in demo.json.
    """

    registration: Registration
    numbers: Mapping[str, tuple[float | None, float]]
    metrics: Metrics

    def __str__(self) -> str:
        lines = [f"{'':46s}{'before':>9s}{'after':>9s}"]
        for name, (before, after) in self.numbers.items():
            lines.append(f"{name:46s}{'' if before is None else f'{before:.3f}':>9s}{after:9.3f}")
        return "\n".join(["", *lines, "", f"files and picture: {self.registration.folder}"])


def demo(
    output: str = "demo_output", *, bundle: str = DEFAULT_BUNDLE, overlay: str | Sequence[str] = (), **settings: object
) -> Demonstration:
    """Make two subjects with a known deformation, register them and compare with the truth; needs `morphzoo[demo]`.

    Args:
        output: folder for the subjects and the results.
        bundle: name of a bundle, or its folder.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json.
    Examples:
        `morphzoo demo -o demo_output`
    Returns:
        The registration, and its error against the known deformation.
    """
    from ..data.names import result_files
    from ..files import write_metrics
    from ..results import PAIR, publishing
    from .subjects import make_subjects

    settings = {**settings, "output_dir": str(output)}
    check_settings(find_bundle(bundle), overlay, settings, 3)
    folder = writable_folder(output)
    print("making two subjects of the MNI152 template (1 mm) ...", flush=True)
    pair, truth, affine = make_subjects(folder / "subjects")
    print("registering the first to the second ...", flush=True)
    registration = infer(bundle, [pair], overlay, settings)[0]
    result = _compare(registration, truth, affine, Path(pair["label_fixed"]))
    place = registration.files["metrics"].parent
    with publishing(place, PAIR, result_files(pair), add=True, scratch_in=folder) as scratch:
        write_metrics(scratch / "demo.json", {**result.metrics, "folder": str(place)})
    return result


def _compare(registration: Registration, truth: Tensor, affine: np.ndarray, label: Path) -> Demonstration:
    """Compare with the true displacement (1, 3, *S), voxels of a grid with this affine, where there is a label."""
    import numpy as np

    from .subjects import dense_error_mm, sd_correlation

    files, row = registration.files, dict(registration.row)
    transforms = [files[kind] for kind in ("forward", "affine") if kind in files]  # the dense part comes first
    before, after = dense_error_mm(truth, affine, transforms, label)
    numbers: dict[str, tuple[float | None, float]] = {
        "error against the known deformation, mean mm": (before.mean(), after.mean()),
        "error against the known deformation, 95 % mm": (np.percentile(before, 95), np.percentile(after, 95)),
        "Dice of grey matter": (row["dice_before_1"], row["dice_after_1"]),
        "Dice of white matter": (row["dice_before_2"], row["dice_after_2"]),
        "folding (det J <= 0), % of the brain": (None, row["folding_percent"]),
        "inverse-consistency error, mean mm": (None, row["inverse_consistency_mm"]),
        "seconds (network, fields, refinement)": (None, row["seconds"]),
    }
    if "displacement_sd" in files:
        row["sd_error_correlation"] = sd_correlation(after, files["displacement_sd"], affine, label)
        numbers["mean SD of the samples, mm"] = (None, row["displacement_sd_mm"])
        numbers["correlation of this SD with the error"] = (None, row["sd_error_correlation"])
    errors = {"error_before_mm": float(before.mean()), "error_after_mm": float(after.mean())}
    return Demonstration(registration, numbers, errors | row)
