"""The experiments of Quicksilver: errors against the teacher, a row for each variant."""

import pytest
import torch

from benchmarks import quicksilver
from benchmarks.experiments import bundle_config
from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.quicksilver.network import QuicksilverNetwork, Target, load_predictor

pytestmark = pytest.mark.slow


def test_rows_are_errors_in_millimetres():
    labels = torch.zeros(1, 1, 12, 12)
    labels[..., 3:9, 3:9] = 1
    pairs = [{"label_moving": labels, "label_fixed": labels}] * 2
    truth = torch.zeros(2, 2, 12, 12)
    shifted = truth.clone()
    shifted[0, 0] = 0.3
    shifted[0, 1] = 0.4
    found = quicksilver.row("x", shifted, truth, pairs, 2.0)
    assert found["all"] == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])
    assert found["brain"] == pytest.approx(found["all"])
    assert found["dice"] == [1, 1]
    assert found["positive"] == 1
    shifted[1, 0, 5] = -3
    assert quicksilver.row("x", shifted, truth, pairs, 2.0)["positive"] == 0.5
    deviation = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    same = quicksilver.correlations(deviation, 2 * deviation, pairs)
    assert same == pytest.approx({"correlation": 1, "deviation": 0.5})


def test_table_has_every_variant(tmp_path, monkeypatch):
    write_phantom_scans(tmp_path / "scans", 4, (40, 36))

    kernel = bundle_config("quicksilver", ["train", "train_2d"]).get_parsed_content("kernel")

    def train(bundle, folder, slices, settings, **_):
        folder.mkdir(parents=True)
        target = Target(kernel, quantity=settings.get("network_def#target#quantity", "momentum"))
        network = QuicksilverNetwork(2, 4, 2, True, True, settings.get("dropout", 0.0), target)
        if "predictor_weights" in settings:
            load_predictor(network, settings["predictor_weights"])
        torch.save(network.state_dict(), folder / "model.pt")

    monkeypatch.setattr(quicksilver, "train", train)
    monkeypatch.setattr(quicksilver, "optimised", lambda config, pairs, path: (0.1 * torch.randn(1, 2, 184, 220), 1.0))
    monkeypatch.setattr(quicksilver, "REFINEMENT", 1)
    quicksilver.main(
        [str(tmp_path / "scans"), str(tmp_path / "out"), "--pairs", "1", "--samples", "2", "--steps", "10"]
    )
    text = (tmp_path / "out" / "tables.md").read_text()
    names = ["none", "optimisation", "momentum, step 5", "velocity, step 14", "displacement, step 14"]
    for name in (*names, "correction, step 14", "correction, step 14, 1 iterations", "probabilistic, 2 samples"):
        assert text.count(f"| {name} |") == 2, name
    assert "rank correlation" in text
