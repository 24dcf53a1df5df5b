"""The shipped similarities have learned something: what was zeroed, shuffled or never trained is found out."""

from __future__ import annotations

import pytest
import torch
from learned_cases import brain, deformed, render

from custom_components.methods.learned_similarity.network import PatchAutoencoder
from custom_components.methods.learned_similarity.similarity import LearnedSimilarity
from custom_components.weights import load_weights

MODELS = "bundles/learned_similarity/models"
FAULTS = ["none", "zeroed", "backwards", "shuffled"]


@pytest.fixture(autouse=True)
def _the_brain_is_there():
    pytest.importorskip("nilearn", reason="the brain that is compared is nilearn's")


def images(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A brain in two renderings."""
    generator = torch.Generator().manual_seed(0)
    image = deformed(brain((64, 72, 64)[:d] if d == 3 else (96, 112), 3 if d == 3 else 2), 2.0, generator)
    first, second = (render(image, generator) for _ in range(2))
    return first / first.max(), second / second.max()


def broken(network: torch.nn.Module, last: torch.nn.Module, fault: str) -> None:
    """The same network with a fault."""
    factor = {"zeroed": 0.0, "backwards": -1.0}.get(fault, 1.0)
    last.register_forward_hook(lambda _, inputs, output: factor * output)
    if fault == "shuffled":
        generator = torch.Generator().manual_seed(0)
        for value in network.parameters():
            if value.ndim > 1:
                order = torch.randperm(value.numel(), generator=generator)
                value.data = value.data.flatten()[order].view_as(value)


def told_apart(form: str, weights: str, d: int, fault: str) -> float:
    """By how much the similarity is worse, in the mean, where one image is shifted by 3 voxels."""
    similarity = LearnedSimilarity(form, spatial_dims=d, weights=weights)
    broken(similarity.network, similarity.network.layers[-1], fault)
    first, second = images(d)
    shifted = [second.roll(way, axis + 2) for axis in range(d) for way in (3, -3)]
    with torch.no_grad():
        return float(sum(similarity(first, one) for one in shifted) / len(shifted) - similarity(first, second))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("form", ["patches", "volumes"])
def test_a_shift_is_seen_by_what_was_trained_alone(form, d, fault, repository):
    end = "" if d == 3 else "_2d"
    found = told_apart(form, str(repository / MODELS / f"{form}{end}.pt"), d, fault)
    print(f"{form}{end}, {fault}: {found:.3f}")
    assert (found > 0.1) == (fault == "none")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("d", [2, 3])
def test_features_restore_a_brain(d, fault, repository):
    """The share of the image's variance that is restored."""
    network = PatchAutoencoder(d)
    load_weights(
        network, repository / MODELS / f"features{'' if d == 3 else '_2d'}.pt", "features", {"spatial_dims": d}
    )
    broken(network.eval(), network.decoder[-1], fault)
    image = images(d)[0]
    with torch.no_grad():
        rest = (network(image) - image).square().mean()
    found = float(1 - rest / image.var())
    print(f"features {d}-D, {fault}: {found:.3f}")
    assert (found > 0.5) == (fault == "none")


@pytest.fixture
def repository(request):
    return request.config.rootpath
