"""Which devices a command takes."""

import pytest
import torch

from custom_components.commands.settings import device_named


def test_the_cpu_is_always_there():
    assert device_named("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="--device: there is no 'nowhere' on this machine"):
        device_named("nowhere")


def test_a_device_without_64_bit_numbers_is_refused(monkeypatch):
    """As torch does on a Mac's GPU."""
    empty = torch.empty

    def refusing(*size, dtype=None, device=None):
        if dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return empty(*size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", refusing)
    with pytest.raises(ValueError, match="--device: 'mps' has no 64-bit numbers, which measures need; take 'cpu'"):
        device_named("mps")
