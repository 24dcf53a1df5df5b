"""Data of the experiments with templates: lists of brains and heads, shapes that are made, trained networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from custom_components.data.phantoms import random_velocity
from custom_components.fields import identity_grid, integrate_velocity, warp
from custom_components.methods.conditional_atlas.network import AtlasNetwork
from custom_components.methods.conditional_atlas.template import ConditionalTemplate, template_settings
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.transforms.scan import LoadScand

BRAINS, HEADS, SHAPES = [144, 176], [128, 128], [64, 64]
HELD_OUT = {"size": [(14.0, 15.0), (18.0, 19.5)], "elongation": [(0.9, 1.0), (1.2, 1.3)]}
HELD_OUT_VENTRICLES = [(4.0, 5.2), (9.5, 11.5)]


def make_lists(slices: Path, heads: Path, output: Path) -> None:
    """Data lists with absolute paths in OUTPUT/data."""
    folder = output / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "brains.json").write_text(json.dumps(middle_slices(slices)))
    found = heads_with_ventricles(heads)
    (folder / "heads.json").write_text(json.dumps(found))
    kept = [i for i in found["training"] if not within(i["ventricles"], HELD_OUT_VENTRICLES)]
    (folder / "ventricles.json").write_text(json.dumps({**found, "training": kept}))
    if not (folder / "shapes.json").exists():
        make_shapes(folder)


def middle_slices(slices: Path) -> dict[str, list[dict[str, Any]]]:
    """The middle level of each person's first scan."""
    sections = json.loads((slices / "datalist.json").read_text())
    levels = sorted({item["group"] for item in sections["training"]})
    found: dict[str, list[dict[str, Any]]] = {}
    for section in ("training", "validation"):
        first: dict[str, Any] = {}
        for item in sections[section]:
            if item["group"] == levels[len(levels) // 2]:
                paths = {key: str((slices / item[key]).absolute()) for key in ("image", "label")}
                first.setdefault(item["subject"], {"subject": item["subject"], **paths})
        found[section] = list(first.values())
    return found


def heads_with_ventricles(heads: Path) -> dict[str, list[dict[str, Any]]]:
    """The heads' slices with the attribute `ventricles`."""
    sections, found = json.loads((heads / "datalist.json").read_text()), {}
    for section in ("training", "validation"):
        items = [
            {"subject": item["subject"], "image": str((heads / item["image"]).absolute())} for item in sections[section]
        ]
        for item in items:
            image = np.asarray(nib.load(item["image"]).dataobj, dtype=float).squeeze()
            item["ventricles"] = round(dark_share(image), 4)
        found[section] = items
    return found


def dark_share(image: np.ndarray) -> float:
    """Percentage of a skull-stripped slice's pixels that are dark and at least 18 pixels inside its outline.

    These are mainly the lateral and third ventricles.
    """
    scaled = image / np.percentile(image, 99.9)
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(scaled > 0.1))
    deep = ndimage.distance_transform_edt(brain) > 18
    return 100 * float((deep & (scaled < 0.3)).sum() / brain.sum())


def within(value: float, ranges: Sequence[tuple[float, float]]) -> bool:
    return any(low <= value <= high for low, high in ranges)


def ellipse(size: float, elongation: float) -> Tensor:
    """A soft ellipse with a bright core, (1, 1, *SHAPES): radii size * elongation and size / elongation, pixels."""
    x = identity_grid(SHAPES) - torch.tensor([(n - 1) / 2 for n in SHAPES]).view(2, 1, 1)
    distance = torch.stack([x[0] / (size * elongation), x[1] * elongation / size]).norm(dim=0)
    return (0.6 * torch.sigmoid(6 * (1 - distance)) + 0.3 * torch.sigmoid(10 * (0.5 - distance)))[None, None]


def make_shapes(folder: Path) -> None:
    """250 ellipses, each bent by a random smooth deformation, with noise; shapes of held-out values are left out."""
    generator = torch.Generator().manual_seed(0)
    items = []
    (folder / "shapes").mkdir(exist_ok=True)
    for i in range(250):
        size, elongation = (
            torch.rand(2, generator=generator) * torch.tensor([10.0, 0.6]) + torch.tensor([12.0, 0.8])
        ).tolist()
        velocity = random_velocity(SHAPES, amplitude=2.5, spacings=(16.0, 24.0), generator=generator)
        image = warp(ellipse(size, elongation), integrate_velocity(velocity))
        image = image + 0.03 * torch.randn(image.shape, generator=generator)
        path = folder / "shapes" / f"shape_{i:03d}.nii.gz"
        nib.save(nib.Nifti1Image(image[0, 0].numpy(), np.eye(4)), path)
        if not within(size, HELD_OUT["size"]) and not within(elongation, HELD_OUT["elongation"]):
            values = {"size": round(10 + 3 * size, 4), "elongation": round(elongation, 4)}
            items.append({"subject": f"shape_{i:03d}", "image": str(path.absolute()), **values})
    shuffled = torch.randperm(len(items), generator=generator).tolist()
    mixed = [
        {**item, **{key: items[k][key] for key in ("size", "elongation")}}
        for item, k in zip(items, shuffled, strict=True)
    ]
    for name, some in (("shapes", items), ("shapes_shuffled", mixed)):
        (folder / f"{name}.json").write_text(json.dumps({"training": some[:-10], "validation": some[-10:]}))


def network_of(folder: Path, spatial_dims: int = 2) -> AtlasNetwork:
    """The network whose weights are FOLDER/model.pt."""
    weights = torch.load(folder / "model.pt", weights_only=True)
    template = ConditionalTemplate(**template_settings(weights))
    network = AtlasNetwork(template, VoxelMorphUNet(spatial_dims, half_resolution=True)).eval()
    network.load_state_dict(weights)
    return network


def load(data: str, section: str, output: Path) -> dict[str, Any]:
    """Images (N, 1, *S), labels if the list has them, items."""
    items = json.loads((output / "data" / f"{data}.json").read_text())[section]
    size = {"brains": BRAINS, "heads": HEADS, "ventricles": HEADS}[data]
    loaded = [LoadScand(1.0, size, "image")(item) for item in items]
    result: dict[str, Any] = {"image": torch.stack([torch.as_tensor(item["image"]) for item in loaded]), "items": items}
    if "label" in loaded[0]:
        result["label"] = torch.stack([torch.as_tensor(item["label"]) for item in loaded])
    return result


def brain_of(scans: Mapping[str, Any]) -> Tensor:
    """Where more than half of the scans have brain, (1, 1, *S)."""
    inside = scans["label"] > 0 if "label" in scans else scans["image"] > 0.1
    return inside.float().mean(0, keepdim=True) > 0.5
