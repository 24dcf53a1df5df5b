"""A training whose network is compiled."""

import pytest
import torch
from bundle_cases import REPOSITORY, train

from custom_components.training import compiling

pytestmark = pytest.mark.filterwarnings("ignore")
bundles = [REPOSITORY / "bundles" / name for name in ("voxelmorph", "hypermorph")]


def test_a_compiled_training_takes_the_same_steps_and_goes_on_uncompiled(bundle, scans, trained, tmp_path, monkeypatch):
    graphs = []
    monkeypatch.setattr(compiling, "_BACKEND", lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch._dynamo.reset()
    losses = train(bundle, scans, tmp_path, max_epochs=1, compile=True)
    assert graphs
    seen = len(graphs)
    losses += train(bundle, scans, tmp_path, max_epochs=2, resume=True)
    assert len(graphs) == seen
    torch._dynamo.reset()
    assert losses[:4] == pytest.approx(trained.losses[:4], rel=1e-5)
    assert len(losses) == len(trained.losses)
    names = [list(torch.load(folder / "model.pt")) for folder in (tmp_path, trained.folder)]
    assert names[0] == names[1]
    assert set(torch.load(tmp_path / "last.pt")["network"]) == set(names[0])
