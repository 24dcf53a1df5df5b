"""What several test files of this folder share."""

import functools

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.synthesis.background import ZeroBackground
from custom_components.synthesis.bias import BiasField
from custom_components.synthesis.blur import RandomBlur
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.gamma import RandomGamma
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.unit_range import UnitRange
from custom_components.synthesis.warp import RandomWarp

SIZES = [(33, 38), (21, 24, 19)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
# Nothing random but the means: an image that is exactly a table look-up.
QUIET = {"std": (0, 0), "background_std": (0, 0), "zero_background": 0.0, "blur": (0, 0), "bias": 0.0, "gamma": 0.0}
AFFINE = {"rotation_degrees": 10.0, "scaling": 0.1, "shear": 0.05, "shift": 2.0}
STILL = RandomWarp(0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def labels_of(size, side: str = "moving") -> torch.Tensor:
    """Two phantoms' label maps, int16, ids 0 to 4, all present; not to be changed in place."""
    return phantom_pair(size, seed=2, batch=2)[f"label_{side}"]


def contrast_of(num_labels=5, zero_background=0.2, blur=(0, 1), bias=0.3, gamma=0.25, **intensities) -> RandomContrast:
    """SynthMorph's effects with other numbers."""
    effects = [ZeroBackground(zero_background), RandomBlur(blur), BiasField(bias), UnitRange(), RandomGamma(gamma)]
    return RandomContrast(LabelIntensities(num_labels, **intensities), effects)


def minmax(image: torch.Tensor) -> torch.Tensor:
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    shape = (-1, *[1] * (image.ndim - 1))
    return (image - low.view(shape)) / (high - low).view(shape)


def table_lookup(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[sample.long()] for row, sample in zip(table, labels, strict=True)])


def textured(size) -> torch.Tensor:
    return torch.rand(2, 1, *size, generator=seeded())
