"""Masks and label maps lie on the image's own grid, whatever its orientation, and are one piece without holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import nn

from custom_components.methods.brain_extraction.morphology import closed, cut_free, largest_component, with_border
from custom_components.methods.brain_extraction.network import BrainUNet, shuffle
from custom_components.methods.brain_extraction.segmenter import BrainSegmenter
from custom_components.methods.brain_extraction.transforms import ExtractBraind
from custom_components.notices import collecting


class Bright(nn.Module):
    """Class 1 where an image is brighter than a half."""

    def forward(self, image):
        return torch.cat([20 * (0.5 - image), 20 * (image - 0.5)], 1)


def ball(size=(60, 64, 56), spacing=(3.0, 3.0, 3.0), radius=60.0):
    """A bright ball with a dark hole in it, and a bright speck outside it."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    distance = np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))
    image = np.where(distance <= radius, 100.0, 10.0)
    image[distance <= 10] = 10
    image[1:4, 1:4, 1:4] = 100
    return image, distance <= radius


def meta(array, affine):
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)).float()[None], affine=torch.from_numpy(affine))


@pytest.fixture
def segmenter():
    return BrainSegmenter(network=Bright())


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_mask_is_one_component_without_holes_on_the_own_grid(segmenter):
    image, truth = ball()
    result = ExtractBraind("image", segmenter)({"image": meta(image, np.diag([3.0, 3, 3, 1]))})
    mask = result["image_brain"]
    assert mask.shape == (1, *image.shape)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask.affine, result["image"].affine)
    found = mask[0].numpy() > 0
    assert ndimage.label(found)[1] == 1
    assert (ndimage.binary_fill_holes(found) == found).all()
    assert dice(found, truth) > 0.98


def test_orientation_and_obliqueness_change_nothing(segmenter):
    image, truth = ball()
    angle = 0.2
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.array([[0, 0, -3.0, 50], [3.0, 0, 0, 9], [0, -3.0, 0, 7], [0, 0, 0, 1]])
    mask = segmenter.mask(meta(image, affine))
    assert dice(mask[0].numpy() > 0, truth) > 0.98


def test_thick_slices_get_a_mask_on_their_own_grid(segmenter):
    image, truth = ball((90, 96, 28), (2.0, 2.0, 6.0))
    mask = segmenter.mask(meta(image, np.diag([2.0, 2, 6, 1])))
    assert mask.shape == (1, 90, 96, 28)
    assert dice(mask[0].numpy() > 0, truth) > 0.95


def test_a_border_keeps_what_is_near_and_apply_blanks_the_rest(segmenter):
    image, _ = ball()
    item = {"image": meta(image, np.diag([3.0, 3, 3, 1]))}
    narrow = segmenter.mask(item["image"])[0].numpy() > 0
    result = ExtractBraind("image", segmenter, apply=True, border=6)(item)
    wide = result["image_brain"][0].numpy() > 0
    distance = ndimage.distance_transform_edt(~narrow, sampling=(3, 3, 3))
    assert (wide == (distance <= 6)).all()
    assert (result["image"][0].numpy()[~wide] == 0).all()
    assert (result["image"][0].numpy()[wide] == image[wide].astype(np.float32)).all()


def test_a_label_map_is_background_where_no_structure_is_likely(segmenter):
    image, _ = ball()
    labels = segmenter.labels(meta(image, np.diag([3.0, 3, 3, 1])))
    assert set(labels.unique().tolist()) == {0, 1}
    assert labels.shape == (1, *image.shape)


@pytest.mark.parametrize(("radius", "words"), [(20.0, "implausible"), (84.5, "implausible")])
def test_a_brain_of_another_size_gives_a_warning(segmenter, radius, words):
    image, _ = ball((60, 60, 60), (3.0, 3.0, 3.0), radius)
    with collecting() as found:
        segmenter.mask(meta(image, np.diag([3.0, 3, 3, 1])))
    assert any(words in sentence for sentence in found)


def test_an_image_without_a_brain_gives_a_warning():
    class Nothing(nn.Module):
        def forward(self, image):
            return torch.cat([torch.ones_like(image), -torch.ones_like(image)], 1)

    image, _ = ball()
    with collecting() as found:
        mask = BrainSegmenter(network=Nothing()).mask(meta(image, np.diag([3.0, 3, 3, 1])))
    assert not mask.any()
    assert any("no brain was found" in sentence for sentence in found)


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (1, 8, 8)])
def test_what_is_no_3d_image_of_one_channel_is_refused(segmenter, shape):
    with pytest.raises(ValueError, match="one channel"):
        segmenter.mask(MetaTensor(torch.zeros(shape)))


def test_weights_are_loaded_at_the_first_use_and_missing_ones_are_told(tmp_path):
    transform = ExtractBraind("image", tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="no weights"):
        transform({"image": meta(ball()[0], np.eye(4))})


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_network_keeps_any_size(spatial_dims):
    network = BrainUNet(spatial_dims, 4, (4, 4, 4), 4)
    size = (37, 41, 33)[:spatial_dims]
    assert network(torch.rand(2, 1, *size)).shape == (2, 4, *size)


def test_the_shuffle_puts_each_channel_in_its_place():
    packed = torch.arange(2 * 8.0).view(1, 16, 1, 1, 1)
    assert torch.equal(shuffle(packed, 2).flatten(), torch.arange(16.0))


def test_a_bridge_is_cut_and_a_slab_stays():
    mask = np.zeros((40, 24, 24), bool)
    mask[2:22, 2:22, 2:22] = mask[22:32, 10:13, 10:13] = mask[32:38, 2:22, 2:22] = True
    found = cut_free(mask, np.ones(3), 4.0)
    assert found[4:20, 4:20, 4:20].all()
    assert not found[30:].any()
    slab = mask[:, :, 8:12]
    assert cut_free(np.pad(slab, ((0, 0), (0, 0), (2, 2))), np.ones(3), 4.0).sum() == slab.sum()


def test_a_slab_of_few_slices_is_found_whole(segmenter):
    image, truth = ball((90, 96, 84), (2.0, 2.0, 2.0))
    image, truth = image[:, :, 50:54], truth[:, :, 50:54]
    mask = segmenter.mask(meta(image, np.diag([2.0, 2, 2, 1])))
    assert dice(mask[0].numpy() > 0, truth) > 0.97


def test_closing_fills_a_gap_and_a_border_is_a_distance():
    mask = np.zeros((24, 24, 24), bool)
    mask[4:20, 4:20, 4:20] = True
    mask[11:13, 8:20, 4:20] = False
    filled = closed(mask, np.ones(3), 3.0)
    assert filled[11:13, 10, 10].all()
    assert not filled[:4].any()
    one = np.zeros((9, 9, 9), bool)
    one[4, 4, 4] = True
    assert with_border(one, np.array([1, 1, 2]), 2.0).sum() == 13 + 2
    assert largest_component(np.zeros((3, 3, 3), bool)).sum() == 0
