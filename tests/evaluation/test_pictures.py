"""Claims: pictures are written whole or not at all, are upright in space, and show folds; the page holds every pair."""

import math
import re

import pytest
import torch
from matplotlib.image import imread

from custom_components.evaluation.drawing import centre_of, draw_image, views_of
from custom_components.evaluation.pictures import maps_picture, pair_picture
from custom_components.evaluation.report.cohort import cohort_page
from custom_components.fields import warp


def arguments(pair):
    return {
        "moving": pair["moving"][0],
        "fixed": pair["fixed"][0],
        "warped": warp(pair["moving"], pair["ddf"])[0],
        "ddf": pair["ddf"][0],
        "spacing_mm": [1.0] * pair["ddf"].shape[1],
    }


def red_pixels(path):
    red, green, blue = imread(path)[..., :3].transpose(2, 0, 1)
    return int(((red > 0.95) & (green < 0.2) & (blue < 0.2)).sum())


def test_picture_of_a_pair_with_labels(tmp_path, phantoms):
    labels = {f"label_{side}": phantoms[f"label_{side}"][0] for side in ("moving", "fixed")}
    pair_picture(tmp_path / "new" / "pair.png", **arguments(phantoms), title="a to b", **labels)
    image = imread(tmp_path / "new" / "pair.png")
    assert image.std() > 0.05
    assert red_pixels(tmp_path / "new" / "pair.png") == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["pair.png"]


def test_folds_are_red(tmp_path, phantoms):
    given = arguments(phantoms)
    given["ddf"] = given["ddf"].clone()
    given["ddf"][0, 12:16] -= 5
    pair_picture(tmp_path / "pair.png", **given)
    assert red_pixels(tmp_path / "pair.png") > 20


def test_taller_spacing_gives_a_taller_picture(tmp_path, phantoms):
    given = arguments(phantoms)
    pair_picture(tmp_path / "one.png", **given)
    given["spacing_mm"] = [1.0] * (len(given["spacing_mm"]) - 1) + [2.0]
    pair_picture(tmp_path / "two.png", **given)
    assert imread(tmp_path / "two.png").shape[0] > 1.3 * imread(tmp_path / "one.png").shape[0]


def test_right_is_on_the_left_and_anterior_is_up():
    from matplotlib.figure import Figure

    volume = torch.zeros(20, 16, 14)
    volume[19, 15, 7] = 1  # far right, far anterior
    (axial, *_) = views_of(volume.shape, (1, 1, 1), (10, 8, 7))
    axes = Figure().add_subplot()
    draw_image(axes, volume, axial, "gray", (0, 1))
    assert axes.get_xlim() == (19.5, -0.5)  # x grows from right to left of the picture: index 19, right, is on the left
    low, high = axes.get_ylim()
    assert low < high
    assert axial.cut(volume)[15, 19] == 1


def test_centre_is_that_of_the_foreground():
    image = torch.full((30, 20), -1.0)
    image[10:21, 4:9] = 3.0
    assert centre_of(image) == [15, 6]
    assert centre_of(torch.zeros(8, 6)) == [4, 3]


def test_planes_of_a_thin_slab_are_left_out():
    assert [v.name for v in views_of((60, 70, 8), (1, 1, 1), (30, 35, 4))] == ["axial"]
    assert [v.name for v in views_of((4, 4, 4), (1, 1, 1), (2, 2, 2))] == ["axial"]
    assert len(views_of((60, 70, 50), (1, 1, 1), (30, 35, 25))) == 3


@pytest.mark.parametrize("value", [0.0, 0.5, math.nan])
def test_constant_images_and_identity_can_be_drawn(tmp_path, value):
    image = torch.full((1, 16, 18), value)
    pair_picture(tmp_path / "p.png", image, image, image, torch.zeros(2, 16, 18), spacing_mm=(1, 1))
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_shapes_must_fit_and_nothing_is_written(tmp_path, phantoms):
    given = arguments(phantoms)
    with pytest.raises(ValueError, match="expected moving of shape"):
        pair_picture(tmp_path / "p.png", **{**given, "moving": given["moving"][:, :-1]})
    with pytest.raises(ValueError, match="expected a spacing for each"):
        pair_picture(tmp_path / "p.png", **{**given, "spacing_mm": [1.0]})
    assert list(tmp_path.iterdir()) == []


def test_picture_of_the_uncertainty_shows_the_image_and_every_map(tmp_path, phantoms):
    fixed = phantoms["fixed"][0]
    maps = {"displacement_sd": fixed[0], "velocity_sd": 2 * fixed[0]}
    spacing = [1.0] * fixed[0].ndim
    for number in (1, 2):
        shown = dict(list(maps.items())[:number])
        maps_picture(tmp_path / "new" / f"{number}.png", fixed, shown, spacing_mm=spacing)
    one, two = (imread(tmp_path / "new" / f"{number}.png") for number in (1, 2))
    assert two.std() > 0.05
    assert two.shape[1] > 1.2 * one.shape[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["1.png", "2.png"]


def test_maps_of_the_uncertainty_share_one_scale(tmp_path):
    """A map a hundred times as small as its neighbour is dark."""
    bright = []
    for second in (1.0, 0.01):
        maps = {"a": torch.ones(20, 18), "b": torch.full((20, 18), second)}
        maps_picture(tmp_path / "p.png", torch.zeros(1, 20, 18), maps, spacing_mm=(1, 1))
        bright.append((imread(tmp_path / "p.png")[..., :3].min(-1) > 0.7).sum())
    assert 0.4 < bright[1] / bright[0] < 0.6


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_maps_without_uncertainty_can_be_drawn(tmp_path, value):
    maps_picture(tmp_path / "p.png", torch.zeros(1, 16, 18), {"sd": torch.full((16, 18), value)}, spacing_mm=(1, 1))
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_page_holds_every_pair_and_links_its_picture(tmp_path):
    rows = [
        {"id": "a<b", "dice_after": 0.5, "dice_after_17": 0.1, "picture": "pictures/a b.png"},
        {"id": "c", "dice_after": 0.75, "picture": tmp_path / "pictures" / "c.png"},
        {"id": "d", "dice_after": math.nan},
    ]
    cohort_page(tmp_path, rows, title="Test & more")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Test &amp; more" in page
    assert "a&lt;b" in page
    assert 'src="pictures/a%20b.png"' in page
    assert 'src="pictures/c.png"' in page
    assert page.count("<img") == 2
    assert re.search(r"<td>dice</td>.*0\.625 .*0\.1768.*<td>2</td>", page)
    assert "dice_after_17" not in page
    assert "http" not in page


def test_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        cohort_page(tmp_path, [])
