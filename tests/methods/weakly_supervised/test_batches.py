"""The draw of a structure, the augmentation, and the pairs of one person's scans."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.weakly_supervised.augmentation import Augmentation, RandomAffine
from custom_components.methods.weakly_supervised.data import LoadPairOfScansd
from custom_components.methods.weakly_supervised.structures import DrawnStructureBatch, draw, indicators

# 1 a gland; 2 and 3 a landmark outside and inside of it; 5 another one that only the moving image shows.
STRUCTURES = [[1, 3, 5], [2, 3], [4, 5]]


def maps():
    moving = torch.tensor([0, 1, 1, 3, 2, 5]).view(1, 1, 2, 3)
    fixed = torch.tensor([1, 1, 3, 3, 2, 0]).view(1, 1, 2, 3)
    return moving, fixed


def batch(count=1):
    moving, fixed = (labels.repeat(count, 1, 1, 1) for labels in maps())
    image = torch.rand(count, 2, 2, 3)
    return {"image": image, "moving": image[:, :1], "fixed": image[:, 1:], "label_moving": moving, "label_fixed": fixed}


def test_structures_may_share_ids():
    moving, _ = indicators(*maps(), STRUCTURES)
    assert moving[0].flatten(1).int().tolist() == [[0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]


def test_all_labels_are_structures_of_their_own():
    moving, fixed = indicators(*maps(), "all")
    assert moving.shape == fixed.shape == (1, 4, 2, 3)
    assert torch.equal(moving.sum(1, keepdim=True) > 0, maps()[0] > 0)


def test_each_structure_that_both_show_is_drawn_equally_often_and_no_other():
    torch.manual_seed(0)
    moving, fixed = indicators(*maps(), STRUCTURES)
    drawn = torch.cat([draw(moving, fixed) for _ in range(400)])
    counts = torch.bincount(drawn, minlength=3).tolist()
    assert counts[2] == 0
    assert counts[0] == pytest.approx(200, abs=40)


def test_both_images_show_the_same_drawn_structure_and_the_network_sees_no_label():
    torch.manual_seed(0)
    given = batch(16)
    image, targets, _, options = DrawnStructureBatch(STRUCTURES)(given)
    assert torch.equal(image, given["image"])
    assert options == {}
    both = torch.stack([labels[0] for labels in indicators(*maps(), STRUCTURES)], 1).float()
    seen = set()
    for pair in torch.stack([targets["label_moving"], targets["label_fixed"]], 1)[:, :, 0]:
        found = [i for i, wanted in enumerate(both) if torch.equal(pair, wanted)]
        assert found
        seen |= set(found)
    assert seen == {0, 1}


def test_a_seeded_draw_can_be_repeated():
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(DrawnStructureBatch(STRUCTURES)(batch(8))[1]["label_moving"])
    assert torch.equal(*answers)


def test_pairs_without_labels_are_refused():
    given = {key: value for key, value in batch().items() if key != "label_fixed"}
    with pytest.raises(ValueError, match="no 'label_fixed'"):
        DrawnStructureBatch("all")(given)


def test_unknown_structures_are_refused():
    with pytest.raises(ValueError, match="'all'"):
        indicators(*maps(), "gland")
    with pytest.raises(ValueError, match="at least one structure"):
        indicators(torch.zeros_like(maps()[0]), torch.zeros_like(maps()[1]), "all")


@pytest.mark.parametrize("dims", [2, 3])
def test_the_augmentation_moves_corners_inward_about_the_centre(dims):
    torch.manual_seed(0)
    drawn = RandomAffine(0.1).draw(200, dims)
    corners = torch.cat([-torch.ones(1, dims), 2 * torch.eye(dims) - 1])
    moved = corners + corners @ drawn[:, :, :dims].transpose(1, 2) + drawn[:, None, :, dims]
    share = 1 - moved / corners
    assert share.min() > -1e-5
    assert share.max() < 0.1 + 1e-5
    assert float(share.mean()) == pytest.approx(0.05, abs=0.005)
    assert RandomAffine(0.0).draw(1, dims).abs().max() < 1e-6


def test_the_augmentation_takes_labels_along_and_each_image_on_its_own():
    torch.manual_seed(0)
    ball = ((torch.arange(24.0)[:, None] - 9).square() + (torch.arange(24.0) - 14).square() < 20).float()[None, None]
    given = {"moving": ball, "fixed": ball, "label_moving": ball.to(torch.int16), "label_fixed": ball.to(torch.int16)}
    changed = RandomAffine(0.3)(given)
    for side in ("moving", "fixed"):
        assert ((changed[side] > 0.5).int() - changed[f"label_{side}"]).abs().sum() <= 6
        assert changed[f"label_{side}"].dtype == torch.int16
    assert not torch.equal(changed["moving"], changed["fixed"])
    assert not torch.equal(changed["moving"], ball)


def test_a_change_of_contrast_keeps_black_and_white_and_the_order_of_grey_values():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 24).view(1, 1, 1, 24).repeat(2, 1, 24, 1)
    given = {"moving": ramp, "fixed": ramp, "label_moving": ramp.long(), "label_fixed": ramp.long()}
    changed = Augmentation(strength=0.0, contrast=0.5)(given)
    for side in ("moving", "fixed"):
        image = changed[side]
        assert image[..., -1].min() > 0.999
        assert image[..., 0].max() < 1e-4
        assert (image.diff(dim=3) > -1e-6).all()
    assert not torch.allclose(changed["moving"], changed["fixed"], atol=1e-2)
    same = Augmentation(strength=0.0, contrast=0.0)(given)
    torch.testing.assert_close(same["moving"], ramp, atol=1e-5, rtol=0)


def test_mixed_pairs_have_the_fixed_images_of_one_another_and_the_first_structure():
    torch.manual_seed(0)
    given = batch(3)
    given["label_fixed"] = torch.stack([maps()[1][0], torch.ones_like(maps()[1][0]), maps()[1][0]])
    image, targets, _, _ = DrawnStructureBatch(STRUCTURES, mixed=1.0)(given)
    assert torch.equal(image[:, :1], given["moving"])
    assert torch.equal(image[:, 1:], given["fixed"].roll(1, 0))
    assert torch.equal(targets["fixed"], given["fixed"].roll(1, 0))
    assert targets["label_fixed"][2].min() == 1
    gland = indicators(*maps(), STRUCTURES)[0][:, :1].float()
    assert torch.equal(targets["label_moving"], gland.repeat(3, 1, 1, 1))


def test_a_pair_is_loaded_as_two_scans_about_their_own_centres(tmp_path):
    path = write_phantom_scans(tmp_path, 4, (12, 14, 16))
    load = LoadPairOfScansd(1.0, [16, 16, 16])
    (pair, *_), (scan, *_) = (load_list(path, section) for section in ("validation_pairs", "training"))
    loaded = load(pair)
    assert set(loaded) == {"moving", "fixed", "label_moving", "label_fixed"}
    assert loaded["moving"].shape == (1, 16, 16, 16)
    assert "image" in load(scan)


def test_of_the_moving_image_only_what_lies_in_the_fixed_ones_field_of_view_is_shown(tmp_path):
    for name, size in (("moving", (16, 16, 16)), ("fixed", (8, 16, 12))):
        ramp = np.broadcast_to(np.arange(1, size[1] + 1, dtype=np.uint8)[:, None], size)
        nib.save(nib.Nifti1Image(ramp, np.eye(4)), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(np.ones(size, np.uint8), np.eye(4)), tmp_path / f"{name}_label.nii.gz")
    pair = {side: str(tmp_path / f"{side}.nii.gz") for side in ("moving", "fixed")}
    pair |= {f"label_{side}": str(tmp_path / f"{side}_label.nii.gz") for side in ("moving", "fixed")}
    loaded = LoadPairOfScansd(1.0, [16, 16, 16])(pair)
    shown = loaded["moving"][0, :, -1] > 0
    assert shown[4:12, 2:14].all()
    assert int(shown.sum()) == 8 * 12
    assert loaded["label_moving"].all()
