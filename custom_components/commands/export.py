"""`morphzoo export`: write a bundle as a self-contained folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .bundles import find_bundle
from .workflow import words_of


def export(
    bundle: str,
    output: str = "exported",
    *,
    atlas: str | None = None,
    atlas_labels: str | None = None,
    label_names: str | None = None,
    formats: str | Sequence[str] = (),
    **options: object,
) -> list[Path]:
    """Write a bundle as a self-contained folder, OUTPUT/<bundle>, that works without this package.

    `--for monai-label` makes OUTPUT/<bundle>_atlas instead, a segmentation model for MONAI Label (docs/monai_label.md);
    `--for hub` makes the folder as the Hugging Face Hub shows it, ready for `push_to_hf_hub` (docs/model_zoo.md).

    Args:
        bundle: name of a bundle, or its folder beside others.
        output: folder for the results.
        atlas, atlas_labels: for MONAI Label: the image that is registered to each study, and its label map.
        label_names: for MONAI Label: table of names, CSV or TSV with the columns id or index, and name.
        formats: the network for other runtimes, too: some of pt2, onnx, torchscript, safetensors (docs/model_zoo.md).
        **options: for: "monai-label" or "hub". zip: also write OUTPUT/<bundle>_v<version>.zip and its SHA-256.
    Examples:
        `morphzoo export voxelmorph -o exported --zip`
    Returns:
        What was written.
    Raises:
        ValueError: if options do not go together, or something may not be shared: the sentence names it.
    """
    from .exporting import export_bundle
    from .label_server_export import export_for_monai_label

    purpose, zipped = options.pop("for", None), options.pop("zip", False)
    zipped = {"True": True, "False": False}.get(str(zipped), zipped)
    if options or purpose not in (None, "monai-label", "hub"):
        raise ValueError(f"export takes --for monai-label, --for hub and --zip, not {', '.join(options) or purpose!r}")
    if not isinstance(zipped, bool) or isinstance(label_names, bool):
        raise ValueError("--zip takes no value, and --label_names the path of a CSV file")
    folder, output = find_bundle(str(bundle)).resolve(), str(output)
    if purpose == "hub" and zipped:
        raise ValueError("the hub takes a folder: leave --zip out")
    if purpose != "monai-label":
        if atlas or atlas_labels or label_names:
            raise ValueError("an atlas is for --for monai-label")
        return export_bundle(folder, output, zipped=zipped, formats=words_of(formats), for_hub=purpose == "hub")
    if formats:
        raise ValueError("--formats are for a bundle, not for MONAI Label")
    if not (atlas and atlas_labels):
        raise ValueError("--for monai-label needs --atlas IMAGE and --atlas-labels LABELS")
    files = {"atlas": str(atlas), "atlas_labels": str(atlas_labels)}
    return export_for_monai_label(folder, output, **files, label_names=label_names, zipped=zipped)
