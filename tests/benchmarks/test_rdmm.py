"""The comparison of constant, region-specific and learned metrics."""

import pytest
import torch

from benchmarks import rdmm
from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.rdmm.networks import MetricNetwork

pytestmark = pytest.mark.slow


def test_metrics_are_compared_on_the_same_pairs(tmp_path, monkeypatch):
    write_phantom_scans(tmp_path / "scans", 4, (32, 32))
    monkeypatch.setattr(rdmm, "SEARCH", {"levels": [1], "iterations": [3]})
    for name, (bundle, network, settings) in rdmm.METHODS.items():
        shorter = {**settings, **({"levels": [1], "iterations": [3]} if "iterations" in settings else {})}
        monkeypatch.setitem(rdmm.METHODS, name, (bundle, network, shorter))
    torch.manual_seed(0)
    torch.save(MetricNetwork(2, 4).state_dict(), tmp_path / "local.pt")
    methods = ["vSVF, 0.003", "LDDMM, 0.001", "RDMM, optimised, 0.003", "metric learning, local, 0.003"]
    words = [str(tmp_path / "scans"), str(tmp_path / "out"), "--pairs", "2"]
    rdmm.main([*words, "--only", ";".join(methods), "--trained", f"local={tmp_path / 'local.pt'}"])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == ["unregistered", *methods]
    assert lines[-1] == "2 pairs"
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert float(lines[5].split("|")[6]) > 0  # the mean of sigma
    for wrong in (["--only", "nothing"], ["--trained", "other=x.pt"]):
        with pytest.raises(SystemExit):
            rdmm.main([*words, *wrong])


def test_a_network_is_trained_for_the_steps_that_are_asked_for(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(rdmm, "train", lambda *args, **options: seen.append((args, options)))
    args = rdmm.arguments().parse_args([str(tmp_path), str(tmp_path / "out"), "--steps", "200"])
    assert rdmm.trained_here("local", args) == tmp_path / "out" / "networks" / "local" / "model.pt"
    assert rdmm.trained_here("RDMM", args).parent.name == "RDMM"
    assert [args[0] for args, _ in seen] == ["metric_learning", "rdmm"]
    assert [options for _, options in seen] == [{"steps": 20, "batch_size": 8}, {"steps": 200, "batch_size": 4}]
