"""The pairs from which the agent that deforms learns, and how it is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.agent_modes import GRID, LEVELS, MODES, STEPS, People, fitted, known, memory, registered, summary
from benchmarks.agent_replay import STATES
from custom_components.fields import warp
from custom_components.methods.agents.modes import ModeAgent, ModeMoves, coefficients, principal_modes
from custom_components.synthesis.noise import smooth_noise


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> People:
    folder = tmp_path_factory.mktemp("maps")
    maps = np.zeros((3, 64, 80, LEVELS[-1] + 1), np.uint8)
    for person in range(3):
        maps[person, 12:52, 14 : 62 + 2 * person] = 1
        maps[person, 20:40, 24 : 44 + 3 * person] = 2
    np.savez(folder / "maps.npz", maps=maps, ids=np.array([0, 2, 3], np.int16), split=np.array(["training"] * 3))
    (folder / "labels.csv").write_text("id,t1_prior_mean,t1_prior_mean_spread\n0,0,0\n2,170,4\n3,100,4\n")
    return People(folder / "maps.npz", folder / "labels.csv", "training")


@pytest.fixture(scope="module")
def moves() -> ModeMoves:
    generator = torch.Generator().manual_seed(0)
    agent = ModeAgent(MODES, GRID, len(STEPS))
    agent.learn(principal_modes(1.5 * smooth_noise(GRID, 8, torch.ones(MODES + 3), generator, channels=2), MODES))
    return ModeMoves(agent, STEPS)


def test_known_coefficients_undo_the_deformation(people, moves):
    image, truth, field = known(people, moves, 0, torch.Generator().manual_seed(1))
    moving, fixed = image.chunk(2, 1)
    after, before = ((one - fixed).square().mean() for one in (warp(moving, field), moving))
    assert after < 0.5 * before
    torch.testing.assert_close(moves.field(truth, fixed.shape[2:]), field)


def test_descent_on_the_modes_finds_them(people, moves):
    image, _, field = known(people, moves, 1, torch.Generator().manual_seed(2))
    found = moves.field(fitted(moves, image), image.shape[2:])
    inside = image[:, 1:].expand_as(field) > 0.3
    assert (found - field)[inside].square().mean() < 0.7 * field[inside].square().mean()


def test_a_memory_has_both_ways_of_registrations_and_starts_without_any_motion(people, moves):
    velocities, pairs = registered(people, 4)
    assert velocities.shape == (4, 2, *GRID)
    found = coefficients(moves.agent.modes, velocities)
    made = memory(people, moves, pairs, found, 3)
    assert made.images.shape == (11, 2, 32, 40)
    assert made.states.shape == (11, STATES, MODES)
    torch.testing.assert_close(made.truths[0:8:2], -made.truths[1:8:2])
    assert float(made.states[:, 0].abs().max()) == 0


def test_the_summary_counts_what_got_better():
    rows = [
        {"kind": kind, "case": case, "way": way, key: value, "cpu_seconds": 1.0}
        for kind, key, values in (
            ("two people", "dice", {"none": (0.5, 0.6), "agent": (0.6, 0.6)}),
            ("known", "error_mm", {"none": (2.0, 2.0), "agent": (0.5, 1.5)}),
        )
        for way, pair in values.items()
        for case, value in zip("ab", pair, strict=True)
    ]
    table = {(row["pairs"], row["way"]): row for row in summary(rows)}
    assert table["two people", "agent"]["mean"] == pytest.approx(0.6)
    assert table["two people", "agent"]["success"] == table["known", "agent"]["success"] == 0.5
    assert table["two people", "none"]["success"] == 0
