"""What several test files of this folder share."""

import pytest
import torch

dimensions = pytest.mark.parametrize("d", [2, 3], ids=["2-D", "3-D"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pair(size, batch=2, seed=0):
    return torch.rand(batch, 2, *size, generator=generator(seed))
