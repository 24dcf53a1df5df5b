"""What is learned from known fields: the loss, the network that grows, the schedule."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from custom_components.methods.simulated_fields.growth import Growth
from custom_components.methods.simulated_fields.network import GrowingUNet, Match
from custom_components.methods.simulated_fields.objective import KnownFieldLoss, length
from custom_components.networks.blocks import enlarged


def batch(size=(16, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    known = 3 * torch.randn(2, len(size), *size, generator=generator)
    mask = torch.rand(2, 1, *size, generator=generator) < 0.5
    return {"known_ddf": known, "known_mask": mask}


def loss(ddf, targets, **settings):
    return float(KnownFieldLoss(**settings)({"ddf": ddf}, targets).detach())


def test_the_known_field_costs_nothing():
    assert loss(batch()["known_ddf"], batch()) == pytest.approx(0, abs=1e-5)


def test_an_error_outside_the_mask_changes_nothing():
    targets = batch()
    wrong = targets["known_ddf"] + 7 * ~targets["known_mask"]
    assert loss(wrong, targets) == pytest.approx(0, abs=1e-5)


def test_no_displacement_costs_the_masked_mean_of_the_known_lengths():
    targets = batch()
    expected = targets["known_ddf"].norm(dim=1, keepdim=True)[targets["known_mask"]].mean()
    assert loss(torch.zeros_like(targets["known_ddf"]), targets) == pytest.approx(float(expected), rel=1e-5)


def test_an_empty_mask_costs_nothing_and_has_no_gradient():
    targets = batch()
    targets["known_mask"] = torch.zeros_like(targets["known_mask"])
    ddf = torch.zeros_like(targets["known_ddf"], requires_grad=True)
    value = KnownFieldLoss()({"ddf": ddf}, targets)
    value.backward()
    assert float(value.detach()) == 0
    assert not ddf.grad.any()


def test_the_gradient_is_a_number_where_the_answer_is_exact():
    targets = batch()
    ddf = targets["known_ddf"].clone().requires_grad_()
    KnownFieldLoss()({"ddf": ddf}, targets).backward()
    assert torch.isfinite(ddf.grad).all()


@pytest.mark.parametrize("penalty", ["l1", "huber"])
def test_gradient_is_that_of_the_value(penalty):
    targets = batch((5, 4))
    targets["known_ddf"] = targets["known_ddf"].double()
    ddf = torch.zeros(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda d: KnownFieldLoss(penalty, 2.0)({"ddf": d}, targets), ddf)


def test_huber_is_half_the_square_up_to_the_threshold_and_then_a_line():
    targets = {"known_ddf": torch.zeros(1, 2, 1, 2), "known_mask": torch.tensor([[[[True, False]]]])}
    for size, expected in ((0.5, 0.125), (1.0, 0.5), (3.0, 2.5)):
        ddf = torch.zeros(1, 2, 1, 2)
        ddf[:, 0] = size
        assert loss(ddf, targets, penalty="huber") == pytest.approx(expected, rel=1e-5)


def test_classes_of_lengths_count_alike():
    known = torch.zeros(1, 2, 1, 10)
    known[:, 0, :, :9], known[:, 0, :, 9] = 1, 6
    targets = {"known_ddf": known, "known_mask": torch.ones(1, 1, 1, 10)}
    assert loss(torch.zeros_like(known), targets) == pytest.approx(1.5, rel=1e-5)
    assert loss(torch.zeros_like(known), targets, bins=[0, 5]) == pytest.approx(3.5, rel=1e-5)
    assert loss(torch.zeros_like(known), targets, bins=[0, 5, 50]) == pytest.approx(3.5, rel=1e-5)


def test_a_batch_without_known_fields_is_refused():
    with pytest.raises(ValueError, match="needs 'known_ddf'"):
        loss(torch.zeros(1, 2, 4, 4), {"moving": torch.zeros(1)})


def test_penalties_and_edges_are_checked():
    with pytest.raises(ValueError, match="l1 or huber"):
        KnownFieldLoss("l2")
    with pytest.raises(ValueError, match="edges that rise"):
        KnownFieldLoss(bins=[0, 5, 5])


SIZES = [(24, 20), (16, 24, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def network(size, **settings):
    torch.manual_seed(0)
    return GrowingUNet(len(size), (4, 6, 8), flow_std=0.1, **settings).eval()


@both
@pytest.mark.parametrize("half_resolution", [True, False])
def test_a_level_that_joins_with_weight_zero_changes_nothing(size, half_resolution):
    net, image = network(size, half_resolution=half_resolution), torch.rand(2, 2, *size)
    with torch.no_grad():
        for stage in (1, 0):
            net.grow(stage + 1)
            before = net(image)
            net.grow(stage, 0.0)
            torch.testing.assert_close(net(image), before, atol=1e-6, rtol=1e-5)
            net.grow(stage, 1.0)
            assert (net(image) - before).abs().max() > 1e-3


@both
def test_weights_that_were_saved_before_a_level_joined_answer_alike_in_the_complete_network(size):
    net, image = network(size), torch.rand(1, 2, *size)
    net.grow(2)
    other = network(size)
    other.load_state_dict(net.state_dict())
    assert (net.stage, other.stage) == (2, 0)
    with torch.no_grad():
        torch.testing.assert_close(other(image), net(image), atol=1e-6, rtol=1e-5)


@both
def test_only_the_levels_that_take_part_learn(size):
    net, counts = network(size, half_resolution=False), []
    for stage in (2, 1, 0):
        net.zero_grad()
        net.grow(stage)
        net(torch.rand(1, 2, *size)).square().mean().backward()
        learning = {name for name, value in net.named_parameters() if value.grad is not None}
        counts.append(len(learning))
    assert counts[0] < counts[1] < counts[2] == len(list(net.parameters()))
    convolutions = [(b - a) // 2 for a, b in pairwise(counts)]
    assert convolutions == [6, 6]  # two for correlations (one without bias), input, link, down, up, head


def test_a_constant_field_stays_constant_through_down_and_up():
    field = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 16, 12)
    torch.testing.assert_close(2 * enlarged(avg_pool2d(field, 2) / 2), field)


@both
def test_a_network_sees_any_size_and_two_paths_see_more(size):
    odd = tuple(n - 3 for n in size)
    for paths in (1, 2):
        for half_resolution in (True, False):
            net = network(size, paths=paths, half_resolution=half_resolution)
            assert net(torch.rand(1, 2, *odd)).shape == (1, len(size), *odd)
    one, two = (receptive(network((96, 16), paths=paths)) for paths in (1, 2))
    assert two > 1.5 * one


def receptive(net):
    """How far a voxel's influence reaches along the first axis."""
    image = torch.full((1, 2, 192, 16), 0.5, requires_grad=True)
    net(image)[:, :, 96, 8].sum().backward()
    rows = image.grad.abs().amax((0, 1, 3)).nonzero()
    return int(rows.max() - rows.min())


@both
def test_correlations_find_the_neighbour_that_looks_alike(size):
    """A moving image whose content lies one voxel further along an axis looks alike at that offset."""
    torch.manual_seed(0)
    match, noise = Match(len(size), 8), torch.rand(1, 1, *size)
    for axis in range(len(size)):
        pair = torch.cat([noise.roll(1, axis + 2), noise], 1)
        with torch.no_grad():
            best = match(pair).argmax(1)[(..., *[slice(4, -4)] * len(size))]
        centre = (3 ** len(size) - 1) // 2
        assert (best == centre + 3 ** (len(size) - 1 - axis)).float().mean() > 0.95


@both
def test_a_network_without_correlations_is_that_of_the_papers(size):
    net = network(size, match_channels=0)
    assert not any(isinstance(module, Match) for module in net.modules())
    assert net(torch.rand(1, 2, *size)).shape == (1, len(size), *size)


def test_two_paths_do_not_grow():
    with pytest.raises(ValueError, match="of one path"):
        network((16, 16), paths=2).grow(1)


def test_growth_follows_the_iterations():
    growth = Growth(network((16, 16)), (0.5, 0.3, 0.2), fade=0.5)
    assert growth.at(0.0) == (2, 1.0)
    assert growth.at(0.49) == (2, 1.0)
    assert growth.at(0.5) == (1, 0.0)
    assert growth.at(0.575) == (1, pytest.approx(0.5))
    assert growth.at(0.65) == (1, 1.0)
    assert growth.at(0.85)[0] == 0
    assert growth.at(1.0) == (0, 1.0)
    engine = SimpleNamespace(state=SimpleNamespace(max_epochs=2, epoch_length=10, iteration=1))
    growth.set(engine)
    assert growth.network.stage == 2
    engine.state.iteration = 20
    growth.set(engine)
    assert (growth.network.stage, float(growth.network.weight_of_level[0])) == (0, 1.0)


def test_growth_checks_its_numbers():
    with pytest.raises(ValueError, match="1 to 3 stages"):
        Growth(network((16, 16)), (0.25,) * 4)
    with pytest.raises(ValueError, match="share of the iterations"):
        Growth(network((16, 16)), (0.5, 0.0))


@pytest.mark.parametrize("grown", [False, True])
def test_a_constant_field_is_learnt(grown):
    torch.manual_seed(0)
    net, objective = GrowingUNet(2, (8, 8, 8)), KnownFieldLoss()
    image = torch.rand(1, 2, 16, 16)
    known = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
    targets = {"known_ddf": known, "known_mask": torch.ones(1, 1, 16, 16)}
    optimizer, growth = torch.optim.Adam(net.parameters(), lr=3e-3), Growth(net, (0.4, 0.4, 0.2))
    for step in range(200):
        if grown:
            net.grow(*growth.at(step / 200))
        optimizer.zero_grad()
        value = objective({"ddf": net(image)}, targets)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.1 < float(length(known).mean())
