"""Label maps of random shapes."""

import pytest
import torch

from custom_components.methods.synthmorph.shapes import DrawShapesd, RandomShapes

SIZES = [(33, 38), (21, 24, 19)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_shapes(size, num_labels: int = 6) -> RandomShapes:
    return RandomShapes(size, num_labels, scales=(16, 32), warp_scales=(8, 16), warp_std=4)


@both
def test_shapes_are_large_regions_of_all_labels(size):
    labels = make_shapes(size).draw(seeded())
    assert labels.shape == (1, *size)
    assert labels.dtype == torch.uint8
    seen = torch.cat([make_shapes(size).draw(seeded(seed)).unique() for seed in range(4)]).unique()
    assert seen.tolist() == list(range(6))
    for axis in range(1, len(size) + 1):
        assert (labels.diff(dim=axis) != 0).float().mean() < 0.2  # of unconnected labels, 5 of 6 neighbours differ


@both
def test_shapes_repeat_with_the_seed(size):
    shapes = make_shapes(size)
    assert torch.equal(shapes.draw(seeded(3)), shapes.draw(seeded(3)))
    assert not torch.equal(shapes.draw(seeded(3)), shapes.draw(seeded(4)))


@both
def test_warping_each_label_changes_the_shapes(size):
    straight = RandomShapes(size, 6, scales=(16, 32), warp_scales=(8, 16), warp_std=0)
    assert not torch.equal(straight.draw(seeded()), make_shapes(size).draw(seeded()))


def test_every_label_has_the_same_chance():
    counts = torch.stack(
        [make_shapes((16, 16), 4).draw(seeded(seed)).flatten().bincount(minlength=4) for seed in range(150)]
    )
    assert counts.double().mean(0).div(256).sub(0.25).abs().max() < 0.08


def test_one_label_gives_an_empty_map():
    assert not make_shapes((9, 7), 1).draw(seeded()).any()


@both
def test_drawn_shapes_depend_on_the_seed_of_the_item_only(size):
    draw = DrawShapesd("label", make_shapes(size))
    first = draw({"label": "", "seed": 7, "subject": "a"})
    torch.rand(3)
    assert torch.equal(first["label"], draw({"seed": 7})["label"])
    assert not torch.equal(first["label"], draw({"seed": 8})["label"])
    assert (first["seed"], first["subject"]) == (7, "a")
