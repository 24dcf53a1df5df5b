"""Tables and pictures of the experiments with templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.conditional_atlas_data import brain_of, load, network_of
from benchmarks.experiments import markdown
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.methods.conditional_atlas.pictures import template_animation

COLUMNS = ["sharpness", "sharpness_scaled", "central", "central_max", "central_validation", "displacement", "folded"]
COLUMNS += ["sd_log_jacobian", "ncc_pairs", "ncc_template", "dice_pairs", "dice_voted"]


def tables(output: Path, data_of: Mapping[str, str]) -> str:
    """What the bundle's page shows, of everything measured so far; `data_of`: the data of each variant."""
    files = {name: output / name / "measures.json" for name in data_of}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    parts = []
    for data in ("brains", "heads"):
        parts.append(templates_table(data, output, {n: row for n, row in found.items() if data_of[n] == data}))
    parts.append(differences_table(output, [name for name in found if data_of[name] == "brains"]))
    for name, row in found.items():
        if data_of[name].startswith("shapes"):
            heads = [name, "correlation", "slope", "mean error", "shapes"]
            lines = [
                [key, v["correlation"], f"{v['slope']:.2f}", v["mean_error"], v["number"]] for key, v in row.items()
            ]
            parts.append(markdown(heads, lines))
    parts += [ventricles_text(name, row) for name, row in found.items() if data_of[name] == "ventricles"]
    parts.append(seconds_table(output, list(found)))
    return "\n".join(part for part in parts if part)


def templates_table(data: str, output: Path, found: Mapping[str, Any]) -> str:
    rows, text = {}, ""
    path = output / f"{data}_baselines.json"
    if path.exists():
        base = json.loads(path.read_text())
        rows = {name: base[name] for name in ("mean", "classical")}
        text = f"Scans: sharpness {base['scans_sharpness']:.2f}, scaled {base['scans_sharpness_scaled']:.2f}\n\n"
    for name, ways in found.items():
        rows |= {f"{name}, {way}": value for way, value in ways.items()}
    return text + markdown([data, *COLUMNS], [[name, *(row.get(c) for c in COLUMNS)] for name, row in rows.items()])


def differences_table(output: Path, names: list[str]) -> str:
    """Each template of brains against that of the variant `brains`."""
    if "brains" not in names:
        return ""
    images = {name: network_of(output / name).template().detach() for name in names}
    brain, lines = brain_of(load("brains", "training", output)), []
    for name, image in images.items():
        rms = (image - images["brains"]).square()[brain].mean().sqrt()
        ncc = normalized_cross_correlation(image, images["brains"], brain)
        lines.append([name, f"{rms:.4f}", f"{float(ncc):.4f}"])
    return markdown(["template against that of `brains`", "RMS difference in the brain", "correlation"], lines)


def ventricles_text(name: str, row: Mapping[str, Any]) -> str:
    """Measures of a variant in lines; a star marks values that were held out."""
    values = zip(row["requested"], row["rendered"], row["is_held_out"], strict=True)
    lines = [f"{name}: monotone {row['monotone']}, all {row['all']}, held out {row['held_out']}", ""]
    lines.append(", ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith(("ncc", "displacement"))))
    lines.append(", ".join(f"{asked:g}{'*' if held else ''}: {shown:.2f}" for asked, shown, held in values))
    return "\n".join(lines) + "\n"


def seconds_table(output: Path, names: list[str]) -> str:
    """CPU seconds of the trainings that ran in one process without a stop."""
    paths = [output / name / "curve.csv" for name in names if name not in ("brains_stopped", "brains_processes")]
    lines = [[path.parent.name, path.read_text().splitlines()[-1].split(",")[3]] for path in paths]
    return markdown(["variant", "training, CPU s"], lines)


def pictures(output: Path) -> None:
    """templates.png: mean, classical, learned, a scan; ventricles.png and .gif: templates for several values."""
    if (output / "brains" / "measures.json").exists():
        scans = load("brains", "training", output)["image"]
        templates = {
            f"mean of {len(scans)} scans": scans.mean(0, keepdim=True),
            "classical average": torch.load(output / "brains_classical.pt"),
            "learned": network_of(output / "brains").template().detach(),
            "one scan": scans[:1],
        }
        sheet(output / "templates.png", templates)
    if (output / "ventricles" / "measures.json").exists():
        template = network_of(output / "ventricles").template
        values = np.linspace(3, 15, 13)
        with torch.no_grad():
            images = [template(template.encoder.values({"ventricles": v})[None]) for v in values]
        shown = list(zip(values, images, strict=True))[::2]
        sheet(output / "ventricles.png", {f"{value:g} %": image for value, image in shown})
        titles = [f"ventricles {v:g} %" for v in values]
        template_animation(output / "ventricles.gif", [image[0] for image in images], titles, spacing_mm=[1.0, 1.0])


def sheet(path: Path, images: Mapping[str, Tensor]) -> None:
    """Images side by side, with titles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(images), figsize=(3 * len(images), 3.7), squeeze=False)
    for axis, (title, image) in zip(axes[0], images.items(), strict=True):
        axis.imshow(image[0, 0].T, origin="lower", cmap="gray", vmin=0, vmax=float(image.quantile(0.995)))
        axis.set_title(title, size=10)
        axis.set_axis_off()
    figure.savefig(path, dpi=90, bbox_inches="tight")
