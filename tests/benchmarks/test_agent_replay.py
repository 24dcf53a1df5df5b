"""The memory that the agent of `rigid_agent` learns from."""

from __future__ import annotations

import pytest
import torch

from benchmarks.agent_replay import STATES, Memory, training
from custom_components.affine import compose_affine, invert_affine
from custom_components.methods.agents.network import AgentNetwork
from custom_components.methods.agents.rigid import RigidMoves
from custom_components.methods.agents.simulation import SimulatedStates
from custom_components.methods.agents.walk import Walk
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.warp import RandomWarp


@pytest.fixture
def memory() -> Memory:
    labels = torch.zeros(1, 1, 48, 48, dtype=torch.int32)
    labels[:, :, 10:30, 14:34] = 1
    labels[:, :, 20:40, 24:36] = 2
    still = RandomWarp(0.0, scales=(8,))
    make = SimulatedStates(RandomContrast(), still, still, RigidMoves(2, radius=8.0), starts=(20.0, 3.0))
    return Memory.rendered(make, [labels], 6, None, seed=0)


def test_it_begins_with_the_start_and_with_shares_of_the_way(memory):
    assert memory.images.shape == (6, 2, 24, 24)
    assert memory.states.shape == (6, STATES, 2, 3)
    torch.testing.assert_close(memory.states[:, 0], torch.eye(2, 3).expand(6, -1, -1), atol=1e-5, rtol=0)
    distance = RigidMoves(2, radius=8.0).distance
    whole = distance(memory.truths)
    for state in range(STATES):
        assert (distance(compose_affine(invert_affine(memory.states[:, state]), memory.truths)) <= whole + 1e-4).all()


def test_states_of_walks_take_the_place_of_half_of_them(memory):
    moves, network = RigidMoves(2, radius=8.0), AgentNetwork(2, actions=6)
    torch.nn.init.normal_(network.last.weight)
    before = memory.states.clone()
    memory.walked(Walk(moves, limit=5), network, 60.0)
    half = STATES // 2
    assert torch.equal(memory.states[:, :half], before[:, :half])
    ends = torch.stack([Walk(moves, limit=5).one(image[None].float(), network)[-1] for image in memory.images])
    torch.testing.assert_close(memory.states[:, -1], ends)


def test_a_training_tells_how_it_goes_ten_times(memory):
    torch.manual_seed(0)
    network = AgentNetwork(2, actions=6, widths=(8, 8, 8), dense=16)
    memories = {"training": memory, "validation": memory}
    rows = [row for row, _ in training(network, memories, Walk(RigidMoves(2, radius=8.0), limit=5), 3.0)]
    assert len(rows) == 10
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0 <= row["lost"] <= 1 and row["end"] >= 0 for row in rows)
