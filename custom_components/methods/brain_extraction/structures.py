"""The classes of the network: their names, and the FreeSurfer ids in label maps that each is trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Position = class; both sides are one class. Lesions count as white matter, choroid plexus and cavum as ventricle.
STRUCTURES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("background", ()),
    ("white matter", (2, 41, 25, 57, 30, 62)),
    ("cerebral cortex", (3, 42)),
    ("lateral ventricle", (4, 43, 72, 136, 163)),
    ("inferior lateral ventricle", (5, 44, 137, 164)),
    ("cerebellum white matter", (7, 46)),
    ("cerebellum cortex", (8, 47)),
    ("thalamus", (10, 49)),
    ("caudate", (11, 50)),
    ("putamen", (12, 51)),
    ("pallidum", (13, 52)),
    ("3rd ventricle", (14,)),
    ("4th ventricle", (15,)),
    ("brain stem", (16,)),
    ("hippocampus", (17, 53)),
    ("amygdala", (18, 54)),
    ("accumbens", (26, 58)),
    ("ventral diencephalon", (28, 60)),
)


def class_table(num_labels: int) -> Tensor:
    """The class of each FreeSurfer id below `num_labels`, int64; 0 for all that is no structure."""
    table = torch.zeros(num_labels, dtype=torch.int64)
    for position, (_, ids) in enumerate(STRUCTURES):
        table[list(ids)] = position
    return table


def volumes_ml(labels: Tensor, affine: np.ndarray) -> dict[str, float]:
    """The volume of each structure in mL, under `<name>_ml`, in a map of classes whose affine goes to millimetres."""
    ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    counts = torch.bincount(labels.flatten().long(), minlength=len(STRUCTURES)) * ml
    return {f"{name}_ml": float(counts[i]) for i, (name, _) in enumerate(STRUCTURES) if i}
