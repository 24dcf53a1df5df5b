"""What several test files of this folder share."""

import pytest
import torch

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def textured(size, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, dtype=torch.float64, generator=generator)


def stripes(size, num_labels=5, batch=2, seed=0):
    """Label maps int16 of blocks of about three voxels; every id below `num_labels` but 1, which none has."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, num_labels - 1, (batch, 1, *[-(-n // 3) for n in size]), generator=generator)
    for axis, n in enumerate(size, start=2):
        blocks = blocks.repeat_interleave(3, axis).narrow(axis, 0, n)
    return (blocks + (blocks > 0)).short()


def random_field(size, batch=2, amplitude=3.0, seed=0):
    """Vectors of several voxels in any direction: near the borders many leave the grid."""
    generator = torch.Generator().manual_seed(seed)
    return amplitude * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)
