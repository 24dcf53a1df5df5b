"""Every shipped file of weights has learned something: it is clearly better than an untrained network."""

from __future__ import annotations

import pytest
import torch
from bundle_cases import REPOSITORY
from learned_cases import configuration, measure_of

# Similarities have no network of a bundle: tests/methods/learned_similarity/test_shipped.py measures them.
FILES = [
    path for path in sorted(REPOSITORY.glob("bundles/*/models/*.pt")) if path.parents[1].name != "learned_similarity"
]


def of(weights):
    return f"{weights.parents[1].name}-{weights.stem}"


@pytest.fixture(autouse=True)
def _the_brain_is_there():
    pytest.importorskip("nilearn", reason="the brain that the networks register is nilearn's")


@pytest.mark.parametrize("weights", FILES, ids=of)
def test_shipped_weights_are_better_than_an_untrained_network(weights):
    measure, least = measure_of(weights)
    found = measure(weights.parents[1], weights, 1.0)
    print(f"{of(weights)}: {found:.3f}, at least {least}")
    assert found >= least


def untrained(weights):
    name = "affine_network" if weights.stem.startswith("affine") else "network"
    torch.manual_seed(0)
    return configuration(weights.parents[1], weights).get_parsed_content(name).state_dict()


def shuffled(weights):
    generator, state = torch.Generator().manual_seed(0), torch.load(weights, weights_only=True)
    for name, value in state.items():
        if value.is_floating_point() and value.ndim > 1:
            state[name] = value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["zeroed", "backwards", "shuffled", "untrained"])
@pytest.mark.parametrize("weights", FILES, ids=of)
def test_weights_that_have_learned_nothing_are_found_out(weights, fault, tmp_path):
    if fault == "untrained" and weights.stem == "correction":
        pytest.skip("a correction is made for the weights that it corrects")
    measure, least = measure_of(weights)
    path, factor = weights, {"zeroed": 0.0, "backwards": -1.0}.get(fault, 1.0)
    if factor == 1:
        path = tmp_path / weights.name
        torch.save((shuffled if fault == "shuffled" else untrained)(weights), path)
    found = measure(weights.parents[1], path, factor)
    print(f"{of(weights)}, {fault}: {found:.3f}, at least {least}")
    assert found < least


def test_a_file_that_nobody_measures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="say here how to measure"):
        measure_of(tmp_path / "models" / "other.pt")
