"""What a training keeps, and in which precision it runs."""

import pytest
import torch

from custom_components.training import default_precision


@pytest.mark.parametrize(
    ("gpu", "units", "precision"),
    [(False, True, "bfloat16"), (False, False, "float32"), (True, True, "float32")],
    ids=["cpu that has it", "cpu that emulates it", "gpu"],
)
def test_networks_train_in_bfloat16_only_where_a_cpu_computes_it(monkeypatch, gpu, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    assert default_precision() == precision
