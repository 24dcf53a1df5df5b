"""The agent for rigid registration: what actions gain, where a walk with true values ends, what the network sees."""

from __future__ import annotations

import math

import pytest
import torch

from custom_components.affine import compose_affine, invert_affine, rotation_matrix
from custom_components.deformations.affine import AffineMap
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.methods.agents.inference import AgentAligner, AgentInferer
from custom_components.methods.agents.network import AgentNetwork
from custom_components.methods.agents.objective import GainLoss, WalkScore
from custom_components.methods.agents.rigid import RigidMoves, identity
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.methods.agents.walk import Walk
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.warp import RandomWarp

DIMS = pytest.mark.parametrize("d", [2, 3])


def rigid(d: int, turn: list[float], shift: list[float]) -> torch.Tensor:
    rotation = rotation_matrix(torch.tensor([turn[: 3 if d == 3 else 1]]))
    return torch.cat([rotation, torch.tensor(shift[:d])[None, :, None]], 2)


def ball(d: int, radius: float) -> torch.Tensor:
    """Points of a ball (N, D), at random."""
    points = 2 * torch.rand(200000, d) - 1
    return radius * points[points.norm(dim=1) <= 1]


@DIMS
class TestMoves:
    def test_there_are_two_for_each_axis_and_turn(self, d):
        assert RigidMoves(d).count == {2: 6, 3: 12}[d]
        assert RigidMoves(d).actions(1.0, torch.zeros(())).shape == (RigidMoves(d).count, d, d + 1)

    def test_distance_is_the_root_mean_square_over_the_ball(self, d):
        moves = RigidMoves(d, radius=20.0)
        offset = rigid(d, [0.3, -0.2, 0.1], [1.0, -2.0, 0.5])
        points = ball(d, 20.0)
        moved = points @ offset[0, :, :d].T + offset[0, :, d] - points
        assert float(moves.distance(offset)) == pytest.approx(float(moved.square().sum(1).mean().sqrt()), rel=0.01)

    def test_every_action_moves_the_ball_by_its_step(self, d):
        moves = RigidMoves(d)
        for step in moves.steps:
            actions = moves.actions(step, torch.zeros((), dtype=torch.float64))
            torch.testing.assert_close(moves.distance(actions), torch.full((moves.count,), step).double())

    def test_the_right_action_gains_its_step_and_at_the_goal_all_lose_it(self, d):
        moves = RigidMoves(d)
        for axis in range(d):
            missing = identity(1, d)
            missing[0, axis, d] = 5.0
            gains = moves.gains(missing)[0, moves.steps.index(1.0)]
            assert int(gains.argmax()) == 2 * axis
            assert float(gains.max()) == pytest.approx(1.0, abs=1e-4)
            assert float(gains[2 * axis + 1]) == pytest.approx(-1.0, abs=1e-4)
        at_goal = moves.gains(identity(1, d))
        torch.testing.assert_close(at_goal, torch.full_like(at_goal, -1.0), atol=1e-3, rtol=0)

    def test_a_turn_is_undone_by_the_turn_to_its_side(self, d):
        moves = RigidMoves(d)
        missing = rigid(d, [0.2, 0, 0], [0.0] * 3)
        assert int(moves.gains(missing)[0, 2].argmax()) == 2 * d

    def test_mirrored_actions_are_the_actions_of_the_mirrored_pair(self, d):
        moves, mirror = RigidMoves(d), torch.eye(d).double()
        mirror[0, 0] = -1
        actions = moves.actions(1.0, torch.zeros((), dtype=torch.float64))
        linear, shift = actions[:, :, :d], actions[:, :, d:]
        reflected = torch.cat([mirror @ linear @ mirror, mirror @ shift], 2)
        torch.testing.assert_close(reflected, actions[moves.mirrored])


@pytest.mark.parametrize(
    "wrong", [{"spatial_dims": 4}, {"steps": ()}, {"steps": (1.0, 2.0)}, {"steps": (1.0, -1.0)}, {"radius": 1.0}]
)
def test_moves_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        RigidMoves(**wrong)


class Oracle(Walk):
    """A walk that knows the true gains."""

    def __init__(self, moves: RigidMoves, truth: torch.Tensor) -> None:
        super().__init__(moves)
        self.truth = truth

    def values(self, image, matrix, network):
        return self.moves.gains(compose_affine(invert_affine(matrix), self.truth))


@DIMS
def test_with_true_values_the_walk_ends_at_the_goal(d):
    moves = RigidMoves(d)
    truth = rigid(d, [0.3, -0.25, 0.2], [4.0, -3.0, 2.0])
    way = Oracle(moves, truth)(torch.zeros(1, 2, *[80] * d), None)[0]
    missing = [moves.distance(compose_affine(invert_affine(one[None]), truth)) for one in way]
    assert missing == sorted(missing, reverse=True)
    assert float(missing[-1]) < moves.steps[-1] * math.sqrt(moves.count)
    assert len(way) < 60


@DIMS
def test_a_walk_that_gains_nothing_stays(d):
    class Nothing(torch.nn.Module):
        def forward(self, image):
            return -torch.ones(len(image), 6, RigidMoves(d).count)

    way = Walk(RigidMoves(d))(torch.rand(2, 2, *[16] * d), Nothing())
    assert [len(one) for one in way] == [1, 1]
    torch.testing.assert_close(way[0][0], identity(1, d)[0])


@DIMS
def test_a_walk_that_goes_in_circles_ends(d):
    class Restless(torch.nn.Module):
        """Values of one action, then of its opposite: what an agent near its goal may do."""

        calls = 0

        def forward(self, image):
            self.calls += 1
            values = torch.zeros(len(image), 6, RigidMoves(d).count)
            values[:, :, self.calls % 2] = 1.0
            return values

    way = Walk(RigidMoves(d))(torch.rand(1, 2, *[16] * d), Restless())[0]
    assert len(way) < 12


@DIMS
def test_the_limit_ends_a_walk(d):
    class Onwards(torch.nn.Module):
        def forward(self, image):
            values = torch.zeros(len(image), 6, RigidMoves(d).count)
            values[:, :, 0] = 1.0
            return values

    assert len(Walk(RigidMoves(d), limit=3)(torch.rand(1, 2, *[80] * d), Onwards())[0]) == 4
    # Nor does an agent leave the images: after 20 voxels there is nothing to see.
    assert float(RigidMoves(d).distance(Walk(RigidMoves(d))(torch.rand(1, 2, *[80] * d), Onwards())[0][-1][None])) <= 20


@DIMS
def test_a_state_shows_the_moving_image_where_the_map_puts_it(d):
    image = torch.zeros(1, 2, *[15] * d)
    image[(0, 0, 10, *[7] * (d - 1))] = 1  # a point 3 voxels from the centre along axis 0
    matrix = identity(1, d)
    matrix[0, 0, d] = 3.0
    shown = RigidMoves(d).seen(image, matrix)
    assert shown[(0, 0, *[7] * d)] == pytest.approx(1)
    torch.testing.assert_close(shown[:, 1:], image[:, 1:])


STATISTICS = LabelIntensities(num_labels=8)


def simulation(d: int, policy=None, **options) -> SimulatedStates:
    still = RandomWarp(0.0, scales=(8,))
    contrast = RandomContrast(STATISTICS, effects=[])
    return SimulatedStates(contrast, still, still, RigidMoves(d, radius=6.0), policy=policy, **options)


def cubes(d: int, batch: int = 2) -> torch.Tensor:
    labels = torch.zeros(batch, 1, *[48] * d, dtype=torch.int32)
    for number, corner in enumerate([(10, 12, 14), (26, 14, 20), (18, 26, 24)], 1):
        labels[(slice(None), slice(None), *[slice(c, c + 10) for c in corner[:d]])] = number
    return labels


@DIMS
class TestSimulatedStates:
    def test_what_is_missing_aligns_the_pair(self, d):
        """Both images with the same look: the moving one under the missing map is the fixed one."""
        make = simulation(d, starts=(20.0, 3.0))
        draw = make.draw(2, (48,) * d, torch.Generator().manual_seed(1))
        draw["looks"][1] = draw["looks"][0]
        for look in draw["looks"]:
            look["intensities"]["noise"].zero_()
            look["intensities"]["mean"][:, 0] = 0
        found = make(cubes(d), draw)
        pair = torch.cat([found["moving"], found["fixed"]], 1)[:: make.states]
        missing = found["offset"][:: make.states]
        aligned = RigidMoves(d).seen(pair, missing)

        def error(image):
            return float((image[:, :1] - image[:, 1:]).square().mean())

        assert error(aligned) < 0.15 * error(pair)

    def test_states_of_all_kinds_come_with_their_gains(self, d):
        network = AgentNetwork(d, actions=RigidMoves(d).count, widths=(8, 8, 8))
        make = simulation(d, network, states=4, most=3)
        draw = make.draw(2, (48,) * d, torch.Generator().manual_seed(0))
        found = make(cubes(d), draw)
        assert found["moving"].shape == found["fixed"].shape == (8, 1, *[24] * d)
        assert found["gains"].shape == (8, 6, RigidMoves(d).count)
        torch.testing.assert_close(found["gains"], make.moves.gains(found["offset"]))
        again = make(cubes(d), make.draw(2, (48,) * d, torch.Generator().manual_seed(0)))
        assert all(torch.equal(found[key], again[key]) for key in found)

    def test_without_a_policy_all_states_are_starts(self, d):
        make = simulation(d, states=1)
        draw = make.draw(3, (48,) * d, torch.Generator().manual_seed(0))
        found = make(cubes(d, 3), draw)
        truth = torch.cat([rotation_matrix(draw["turn"]), draw["shift"][:, :, None]], 2)
        torch.testing.assert_close(found["offset"], truth)


@DIMS
def test_an_agent_learns_to_find_a_shifted_image(d):
    """A few steps on one anatomy: the loss falls, and walks end nearer to the goal than they start."""
    torch.manual_seed(0)
    network = AgentNetwork(d, actions=RigidMoves(d).count, widths=(8, 16, 16), dense=32)
    make = simulation(d, network, states=4, most=3, starts=(5.0, 3.0))
    optimizer, loss, losses = torch.optim.Adam(network.parameters(), 3e-3), GainLoss(), []
    for seed in range(40 if d == 3 else 120):
        batch = make(cubes(d), make.draw(2, (48,) * d, torch.Generator().manual_seed(seed)))
        optimizer.zero_grad()
        value = loss({"values": network(torch.cat([batch["moving"], batch["fixed"]], 1))}, batch)
        value.backward()
        optimizer.step()
        losses.append(float(value))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@DIMS
def test_landmarks_are_exact_in_half_precision(d):
    """Where a network runs in bfloat16 its landmarks keep all their digits: a turn is read off small differences."""
    features = torch.rand(1, 8, *[12] * d)
    network = AgentNetwork(d, actions=RigidMoves(d).count, widths=(8, 8, 8))
    expected = network.landmarks(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.landmarks(features)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_score_is_1_where_the_map_is_found():
    moves, truth = RigidMoves(2), rigid(2, [0.2], [1.0, 2.0])
    assert float(WalkScore(moves)({"pred": {"state": truth}, "label": {"offset": truth}})) == pytest.approx(1)
    away = {"pred": {"state": identity(1, 2)}, "label": {"offset": truth}}
    assert float(WalkScore(moves)(away)) < 0.7


@DIMS
def test_inferer_and_aligner_find_the_same_map(d):
    torch.manual_seed(0)
    network = AgentNetwork(d, actions=RigidMoves(d).count, widths=(8, 8, 8))
    torch.nn.init.normal_(network.last.weight, std=0.05)
    image, walk = torch.rand(2, 2, *[20] * d), Walk(RigidMoves(d), limit=4)
    found = AgentInferer(walk, StationaryVelocity(), inverse=True)(image, network)
    assert found["steps"][0]["actions"].tolist() == [len(way) - 1 for way in walk(image, network)]
    for one in range(2):
        matrix = AgentAligner(network, walk)(image[one : one + 1])
        ddf = AffineMap()(matrix, image.shape[2:])["ddf"]
        torch.testing.assert_close(found["ddf"][one : one + 1], ddf, atol=1e-4, rtol=0)
        back = AffineMap()(invert_affine(matrix), image.shape[2:])["ddf"]
        torch.testing.assert_close(found["inverse_ddf"][one : one + 1], back, atol=1e-4, rtol=0)


def test_an_aligner_reads_the_weights_of_its_network():
    network, other = AgentNetwork(2, actions=6), AgentNetwork(2, actions=6)
    aligner = AgentAligner(network, Walk(RigidMoves(2)))
    aligner.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in aligner.state_dict().items())
