"""The agent that deforms: its modes, what its actions gain, and where a walk with true values ends."""

from __future__ import annotations

import math

import pytest
import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import resize_field, warp
from custom_components.methods.agents.inference import AgentInferer
from custom_components.methods.agents.modes import ModeAgent, ModeMoves, coefficients, principal_modes
from custom_components.methods.agents.walk import Walk
from custom_components.synthesis.noise import smooth_noise

GRIDS = {2: (8, 10), 3: (5, 6, 5)}
DIMS = pytest.mark.parametrize("d", [2, 3])
STEPS = (1.0, 0.5, 0.25)


def velocities(d: int, count: int = 9) -> torch.Tensor:
    """Smooth ones, of the voxels of images."""
    generator = torch.Generator().manual_seed(d)
    grid = GRIDS[d]
    return 2 * smooth_noise(grid, 3, torch.ones(count), generator, channels=d)


def agent_of(d: int, count: int = 4) -> ModeAgent:
    agent = ModeAgent(count, GRIDS[d], len(STEPS), widths=(8, 8, 8), dense=16)
    agent.learn(principal_modes(velocities(d), count))
    return agent


@DIMS
class TestPrincipalModes:
    def test_modes_are_orthonormal(self, d):
        modes = principal_modes(velocities(d), 5)
        torch.testing.assert_close(coefficients(modes.fields, modes.fields), torch.eye(5), atol=1e-4, rtol=0)

    def test_all_modes_together_are_the_velocities(self, d):
        given = velocities(d)
        modes = principal_modes(given, len(given))
        again = torch.einsum("bm,m...->b...", coefficients(modes.fields, given), modes.fields)
        torch.testing.assert_close(again, given, atol=1e-3, rtol=0)
        assert float(modes.explained[-1]) == pytest.approx(1)

    def test_deviations_are_those_of_the_coefficients_and_fall(self, d):
        given = velocities(d)
        modes = principal_modes(given, 5)
        deviations = coefficients(modes.fields, given).square().mean(0).sqrt()
        torch.testing.assert_close(modes.deviations, deviations, atol=1e-4, rtol=1e-4)
        assert modes.deviations.tolist() == sorted(modes.deviations.tolist(), reverse=True)
        assert modes.explained.tolist() == sorted(modes.explained.tolist())

    def test_the_sign_of_a_velocity_does_not_matter(self, d):
        """Of a pair and its swapped pair there is one."""
        given = velocities(d)
        other = given * torch.tensor([1.0, -1.0] * 5)[: len(given)].view(-1, *[1] * (d + 1))
        for a, b in zip(principal_modes(given, 3), principal_modes(other, 3), strict=True):
            torch.testing.assert_close(a.abs(), b.abs(), atol=1e-3, rtol=1e-3)


def test_more_modes_than_velocities_are_refused():
    with pytest.raises(ValueError, match="at most 9 modes"):
        principal_modes(velocities(2), 10)


@DIMS
class TestModeMoves:
    def test_there_are_two_actions_for_each_mode_and_they_undo_each_other(self, d):
        moves = ModeMoves(agent_of(d), STEPS)
        state = torch.randn(3, 4)
        assert moves.count == 8
        for k in range(4):
            there = moves.after(state, torch.full((3,), 2 * k), 0.5)
            assert torch.equal((there - state).abs() > 1e-6, (torch.arange(4) == k).expand(3, 4))
            torch.testing.assert_close(moves.after(there, torch.full((3,), 2 * k + 1), 0.5), state)

    def test_an_action_changes_the_velocity_by_its_step(self, d):
        moves = ModeMoves(agent_of(d), STEPS)
        state = moves.after(torch.zeros(1, 4), torch.tensor([3]), 0.5)
        size = moves.velocity(state).square().sum(1).mean().sqrt()
        assert float(size) == pytest.approx(0.5, rel=1e-3)
        assert float(moves.distance(moves.missing(torch.zeros(1, 4), state))) == pytest.approx(0.5)

    def test_gains_are_what_the_distance_falls_by(self, d):
        moves = ModeMoves(agent_of(d), STEPS)
        state, truth = torch.randn(2, 5, 4)
        gains = moves.gains(moves.missing(state, truth))
        assert gains.shape == (5, 3, 8)
        before = moves.distance(moves.missing(state, truth))
        for level, step in enumerate(STEPS):
            for action in range(8):
                after = moves.distance(moves.missing(moves.after(state, torch.full((5,), action), step), truth))
                torch.testing.assert_close(gains[:, level, action], (before - after) / step, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(moves.gains(torch.zeros(1, 4)), torch.full((1, 3, 8), -1.0))

    def test_the_field_is_the_exponential_in_voxels_of_the_images(self, d):
        moves, size = ModeMoves(agent_of(d), STEPS), [4 * n for n in GRIDS[d]]
        state = 0.5 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        fine = resize_field(moves.parameters(state, size), size)
        error = moves.field(state, size) - StationaryVelocity()(fine, size)["ddf"]
        assert float(error.abs().mean()) < 0.05
        length = fine.square().sum(1).mean().sqrt()
        assert float(length) == pytest.approx(float(state.square().sum(1).mean().sqrt()), rel=0.3)

    def test_a_walk_with_true_values_ends_at_the_goal_in_as_many_steps_as_it_takes(self, d):
        class Oracle(Walk):
            def values(self, image, state, network):
                return self.moves.gains(self.moves.missing(state, truth))

        agent = agent_of(d)
        moves = ModeMoves(agent, STEPS)
        truth = agent.deviations * torch.tensor([[1.4, -0.8, 1.1, -0.3]])
        way = Oracle(moves)(torch.zeros(1, 2, *[20] * d), None)[0]
        left = moves.distance(moves.missing(way[-1][None], truth))
        assert float(left) <= STEPS[-1] / 2 * math.sqrt(4) + 1e-5
        assert len(way) - 1 <= int((truth.abs() / STEPS[-1]).ceil().sum())

    def test_an_agent_stays_within_3_deviations(self, d):
        class Onwards(torch.nn.Module):
            def forward(self, image):
                values = torch.zeros(len(image), 3, 8)
                values[:, :, 0] = 1.0
                return values

        agent = agent_of(d)
        end = Walk(ModeMoves(agent, STEPS))(torch.rand(1, 2, *[20] * d), Onwards())[0][-1]
        assert float(end[0]) <= 3 * float(agent.deviations[0])
        assert float(end[0]) > 3 * float(agent.deviations[0]) - STEPS[-1]

    def test_there_is_no_mirror_image_of_a_mode(self, d):
        with pytest.raises(ValueError, match="mirror"):
            Walk(ModeMoves(agent_of(d), STEPS), mirror=True)

    def test_the_inferer_gives_the_field_of_the_last_state_and_its_inverse(self, d):
        agent = agent_of(d)
        torch.nn.init.normal_(agent.values.last.weight, std=0.2)
        moves, image = ModeMoves(agent, STEPS), torch.rand(1, 2, *[4 * n for n in GRIDS[d]])
        walk = Walk(moves, limit=5)
        found = AgentInferer(walk, StationaryVelocity(), inverse=True)(image, agent)
        end = walk(image, agent)[0][-1]
        assert float(end.abs().max()) > 0
        torch.testing.assert_close(found["ddf"], moves.field(end[None], image.shape[2:]))
        torch.testing.assert_close(found["warped"], warp(image[:, :1], found["ddf"]))
        torch.testing.assert_close(found["inverse_ddf"], moves.field(-end[None], image.shape[2:]), atol=1e-4, rtol=0)


def test_modes_are_stored_with_the_network():
    agent = agent_of(2)
    other = ModeAgent(4, GRIDS[2], len(STEPS), widths=(8, 8, 8), dense=16)
    other.load_state_dict(agent.state_dict())
    assert torch.equal(other.modes, agent.modes)
    assert torch.equal(other.deviations, agent.deviations)
