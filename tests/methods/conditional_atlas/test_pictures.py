"""Pictures and animations of templates."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from methods.conditional_atlas.cases import SIZES, phantom_sizes
from PIL import Image

from custom_components.data.phantoms import phantom_pair
from custom_components.methods.conditional_atlas.pictures import template_animation, template_picture


@phantom_sizes
def test_picture_of_a_template_has_a_row_more_with_labels(size, tmp_path):
    pair, spacing = phantom_pair(size), [1.0] * len(size)
    template_picture(tmp_path / "new" / "plain.png", pair["fixed"][0], spacing_mm=spacing)
    template_picture(tmp_path / "new" / "labels.png", pair["fixed"][0], pair["label_fixed"][0], spacing_mm=spacing)
    plain, labels = (imread(tmp_path / "new" / f"{name}.png") for name in ("plain", "labels"))
    assert plain.std() > 0.05
    assert labels.shape[0] > 1.7 * plain.shape[0]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["labels.png", "plain.png"]


@phantom_sizes
def test_animation_goes_there_and_back(size, tmp_path):
    images = [phantom_pair(size, seed=i)["fixed"][0] for i in range(4)]
    template_animation(
        tmp_path / "new" / "a.gif", images, [f"age {i}" for i in range(4)], spacing_mm=[1.0] * len(size), seconds=0.3
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]
    with Image.open(tmp_path / "new" / "a.gif") as picture:
        assert picture.n_frames == 6
        assert picture.info["duration"] == 300
        frames = []
        for i in range(6):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("L"), dtype=float))
    for there, back in ((1, 5), (2, 4)):
        assert np.abs(frames[there] - frames[back]).mean() < 1
        assert np.abs(frames[there] - frames[0]).mean() > 1


def test_an_animation_of_two_has_two_frames(tmp_path):
    images = [phantom_pair(SIZES[0], seed=i)["fixed"][0] for i in range(2)]
    template_animation(tmp_path / "a.gif", images, ["F", "M"], spacing_mm=[1.0, 1.0])
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 2


def test_images_without_a_heading_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        template_animation(tmp_path / "a.gif", [torch.rand(1, 24, 28)] * 2, ["F"], spacing_mm=[1.0, 1.0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_templates_can_be_drawn(tmp_path, value):
    image = torch.full((1, 16, 18), value)
    template_picture(tmp_path / "p.png", image, torch.zeros(1, 16, 18, dtype=torch.int16), spacing_mm=(1, 1))
    template_animation(tmp_path / "a.gif", [image, image], ["a", "b"], spacing_mm=(1, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"p.png", "a.gif"}
