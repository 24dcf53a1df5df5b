"""Which memory format a network's images get."""

import logging

import pytest
import torch
from torch import nn

from custom_components.networks import layout
from custom_components.networks.layout import channels_last, fastest_layout

CONTIGUOUS = torch.contiguous_format


@pytest.fixture
def measured(monkeypatch):
    """As on a GPU that may choose; which formats were tried."""
    tried = []
    monkeypatch.setattr(layout, "_MEASURED", {"cpu"})
    monkeypatch.setattr(layout, "_chosen", {})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def trial(network, image, options, form, real=layout._trial):
        tried.append(form)
        real(network, image, options, form)
        return 1.0 if form == CONTIGUOUS else 2.0

    monkeypatch.setattr(layout, "_trial", trial)
    return tried


def network():
    return nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.Dropout(), nn.BatchNorm3d(3))


IMAGE = torch.rand(1, 2, 6, 6, 6)


def test_the_cpu_takes_channels_last_without_a_trial(monkeypatch):
    monkeypatch.setattr(layout, "_trial", None)
    assert fastest_layout(network(), IMAGE) == torch.channels_last_3d
    assert fastest_layout(network(), IMAGE[..., 0]) == torch.channels_last


def test_a_run_that_is_to_be_repeated_has_no_trial(measured, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert fastest_layout(network(), IMAGE) == torch.channels_last_3d
    assert not measured


def test_a_trial_is_held_once_for_each_precision_and_the_log_says_what_it_found(measured, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert fastest_layout(network(), IMAGE) == CONTIGUOUS
    assert measured == [torch.channels_last_3d, CONTIGUOUS]
    assert "2.0000 s" in caplog.text
    assert "torch.contiguous_format is taken" in caplog.text
    with torch.no_grad():
        fastest_layout(network(), IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        fastest_layout(network(), IMAGE)
    assert len(measured) == 6


def test_a_trial_leaves_no_trace(measured):
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fastest_layout(ours, IMAGE)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert all(weight.grad is None for weight in ours.parameters())
    assert ours[0].weight.is_contiguous()


def test_channels_last_is_the_format_of_the_axes():
    assert IMAGE.contiguous(memory_format=channels_last(IMAGE)).is_contiguous(memory_format=torch.channels_last_3d)
