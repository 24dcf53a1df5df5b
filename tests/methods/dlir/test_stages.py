"""The stages of DLIR: maps are composed, one stage learns at a time, and learning brings images together."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.bspline import BSplineDeformation
from custom_components.fields import compose, warp
from custom_components.methods.dlir.inference import StagesInferer
from custom_components.methods.dlir.networks import StageNetworks
from custom_components.methods.dlir.objective import StageLoss, correlation

SPACINGS = (8, 4)


def inferer(**options):
    return StagesInferer(BSplineDeformation(SPACINGS[-1]), SPACINGS, **options)


def networks(d=2, stir=True):
    torch.manual_seed(0)
    network = StageNetworks(d, SPACINGS, features=8)
    if stir:
        torch.nn.init.normal_(network.affine.parts.weight, std=0.05)
        for spline in network.splines:
            torch.nn.init.normal_(spline.points.weight, std=0.3)
    return network


@pytest.mark.parametrize("size", [(40, 36), (24, 22, 20)], ids=["2-D", "3-D"])
def test_the_map_is_the_stages_composed_and_the_original_is_warped_once(size):
    pair = phantom_pair(size, seed=1)
    network = networks(len(size)).eval()
    with torch.no_grad():
        found = inferer(inverse=True)(torch.cat([pair["moving"], pair["fixed"]], 1), network)
    assert len(found["steps"]) == 3
    torch.testing.assert_close(found["warped"], warp(pair["moving"], found["ddf"]))
    first, second = found["steps"][0]["ddf"], found["steps"][1]["ddf"]
    with torch.no_grad():
        seen = torch.cat([warp(pair["moving"], first), pair["fixed"]], 1)
        own = BSplineDeformation(8)(network(seen, 1), size)["ddf"]
    torch.testing.assert_close(second, compose(first, own))
    assert compose(found["ddf"], found["inverse_ddf"]).norm(dim=1).median() < 0.1


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_stage_learns_and_later_ones_are_not_asked(stage):
    pair, network = phantom_pair((40, 36), seed=1), networks()
    pred = inferer(learns=stage)(torch.cat([pair["moving"], pair["fixed"]], 1), network)
    assert len(pred["steps"]) == stage + 1
    StageLoss(1.0)(pred, pair).backward()
    learned = {
        name.split(".")[0] + name.split(".")[1] * (name[0] == "s")
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    assert learned == {("affine", "splines0", "splines1")[stage]}


def test_a_network_learns_to_align_a_pair():
    pair, network = phantom_pair((64, 56), seed=1), networks(stir=False)
    image = torch.cat([pair["moving"], pair["fixed"]], 1)
    before = float(correlation(pair["moving"], pair["fixed"]))
    reached = [before]
    for stage in (0, 1, 2):
        step, loss = inferer(learns=stage), StageLoss(0.01)
        optimizer = torch.optim.Adam(network.parameters(), 0.003)
        for _ in range(40):
            optimizer.zero_grad()
            pred = step(image, network)
            loss(pred, pair).backward()
            optimizer.step()
        reached.append(float(correlation(pred["warped"], pair["fixed"])))
    assert reached[0] < reached[1] < reached[2] < reached[3]
    assert 1 - reached[3] < 0.5 * (1 - before)


def test_correlation_is_of_each_pair_for_itself():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 1, 16, 16, generator=generator)
    b = torch.stack([0.1 + 0.5 * a[0], 1 - 3 * a[1]])
    torch.testing.assert_close(correlation(a, b), torch.tensor([1.0, -1.0]), atol=1e-4, rtol=0)
    flat = torch.full_like(a, 0.3).requires_grad_()
    correlation(flat, b).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="stage from 0 to 2"):
        inferer(learns=3)
