"""What is doubtful about a session: what its template does not do, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.preparation.looks import describe
from custom_components.preparation.steps import MASK
from custom_components.preparation.template import Template
from custom_components.space.memory_images import source_of
from custom_components.space.volumes import load_image, load_labels

SIZE = (24, 28, 26)


def image_of(array: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(np.diag([4.0, 4, 4, 1])))


def brain(*cut: int) -> np.ndarray:
    """A ball in the middle of the grid, moved by voxels along the axes: it is cut off where it leaves the grid."""
    middle = [(n - 1) / 2 + move for n, move in zip(SIZE, cut, strict=True)]
    distance = sum((x - m) ** 2 for x, m in zip(np.indices(SIZE), middle, strict=True))
    return (distance <= 81).astype(np.int16)


def flags(inside: np.ndarray, template: np.ndarray | None, folder) -> list[str]:
    rng = np.random.default_rng(0)
    picture = rng.random(SIZE).astype(np.float32)
    item = {"T1w": image_of(picture * inside), MASK: image_of(inside), "template": None}
    if template is not None:
        sources = [source_of(image_of(one), "template") for one in (picture * template, template)]
        item["template"] = Template("ball", load_image(sources[0]), load_labels(sources[1]))
    return describe(folder / "picture.png", item, ["T1w"], [])["flags"]


@pytest.mark.parametrize("move", [(0, 0, -6), (0, 8, 0)])
def test_a_brain_that_is_cut_off_is_doubtful_unless_the_templates_is_cut_there(tmp_path, move):
    edge = "the brain mask reaches the edge of the grid"
    assert flags(brain(*move), None, tmp_path) == [edge]
    assert edge in flags(brain(*move), brain(0, 0, 0), tmp_path)
    assert edge not in flags(brain(*move), brain(*move), tmp_path)
    assert flags(brain(0, 0, 0), brain(0, 0, 0), tmp_path) == []
