"""Registration in `monai.transforms.Compose`: any loss, labels along, and back again."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.losses import BendingEnergyLoss, GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
from monai.transforms import Compose, EnsureChannelFirstd, Flipd, LoadImaged, ScaleIntensityd
from support import blobs, oriented

import custom_components as mz
from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.overlap import mean_dice

LNCC = {2: LocalNormalizedCrossCorrelationLoss(spatial_dims=2), 3: LocalNormalizedCrossCorrelationLoss()}


def of_world(size, spacing, codes, shift=0.0):
    affine = oriented(codes, size, spacing, oblique=True)
    image = torch.from_numpy(blobs(size, affine, shift))[None] / 300
    return MetaTensor(image, affine=torch.from_numpy(affine))


@pytest.fixture(scope="module")
def shifted():
    """Images of a formula in the world, 3 mm apart along each axis, of other orientation and spacing."""
    moving, fixed = ((32, 30, 28), (2.0, 2.2, 2.4), "LIA", 3.0), ((30, 30, 30), (2.1, 2.1, 2.1), "RAS")
    return {"moving": of_world(*moving), "fixed": of_world(*fixed)}


@pytest.fixture(scope="module")
def people():
    """Two flat phantoms with labels."""
    pair = phantom_pair((48, 44))
    return {name: MetaTensor(pair[name][0]) for name in ("moving", "fixed", "label_moving", "label_fixed")}


def test_an_affine_map_in_the_world_is_found(shifted):
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[3], model="affine", levels=(4, 2, 1), iterations=(60, 30, 15))
    found = find(shifted)
    points = np.array([[0.0, 0, 0], [8, 5, -6], [-7, 8, 3]])
    assert np.abs(found["transform"].points(points) - (points - 3)).max() < 0.7  # mm, a third of a voxel
    assert np.abs(found["transform"].inverse().points(points) - (points + 3)).max() < 0.7
    assert found["transform"].matrix is not None
    np.testing.assert_allclose(found["moving"].affine, shifted["fixed"].affine)
    assert (found["moving"] - shifted["fixed"]).abs().mean() < 0.02


LOSSES = {
    "LNCC": (LNCC[2], 0.1),
    "mutual information": (GlobalMutualInformationLoss(num_bins=32), 0.02),
    "own": (lambda warped, fixed: (warped - fixed).square().mean(), 0.002),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_brings_labels_together(name, people):
    loss, weight = LOSSES[name]
    find = mz.PairwiseRegistrationd(
        ["moving", "label_moving"], loss=loss, model="velocity", levels=(2, 1), iterations=(30, 20), weight=weight
    )
    found = find(people)
    labels = [people["label_fixed"], people["label_moving"], found["label_moving"]]
    target, before, after = (labels_[None].as_tensor().long() for labels_ in labels)
    assert float(mean_dice(after, target)) > float(mean_dice(before, target)) + 0.03
    assert not found["label_moving"].is_floating_point()


def test_a_displacement_takes_a_regularisation_of_monais(people):
    options = {"model": "displacement", "levels": [2, 1], "iterations": 15, "regularization": BendingEnergyLoss()}
    energies = []
    for weight in (0.1, 100.0):
        found = mz.PairwiseRegistrationd("moving", loss=LNCC[2], weight=weight, **options)(people)
        energies.append(BendingEnergyLoss()(found["transform"].displacement(people["fixed"]).as_tensor()[None]))
    assert energies[1] < 0.3 * energies[0]


def test_models_follow_one_another_with_one_interpolation(people):
    both = mz.PairwiseRegistrationd("moving", loss=LNCC[2], levels=[2], iterations=10)(people)
    assert repr(both["transform"]) == "Transform(field, matrix)"
    warped = both["transform"].warp(people["moving"], people["fixed"])
    torch.testing.assert_close(both["moving"].as_tensor(), warped.as_tensor())


def test_the_inverse_brings_images_back_to_their_own_grids(shifted):
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[3], model=("affine", "velocity"), levels=(4,), iterations=20)
    there = find(shifted)
    back = find.inverse(there)
    assert back["moving"].shape == shifted["moving"].shape
    np.testing.assert_allclose(back["moving"].affine, shifted["moving"].affine)
    inner = (slice(None), *[slice(8, -8)] * 3)
    assert (back["moving"][inner] - shifted["moving"][inner]).abs().mean() < 0.015  # two interpolations
    assert not back["moving"].applied_operations


def test_what_is_done_later_is_done_first_and_undone_in_turn(shifted):
    """Operations that a lazy Compose leaves pending are applied before the registration."""
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[3], model="affine", levels=(4,), iterations=20)
    chain = Compose([Flipd(["moving"], spatial_axis=1), find], lazy=True)
    found = chain(shifted)
    direct = find({**shifted, "moving": Flipd("moving", spatial_axis=1)(shifted)["moving"]})
    torch.testing.assert_close(found["moving"].as_tensor(), direct["moving"].as_tensor())
    assert chain.inverse(found)["moving"].shape == shifted["moving"].shape


def test_a_transform_of_an_item_is_applied_both_ways(people):
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[2], model="velocity", levels=[2], iterations=10)
    both = {**people, "transform": find(people)["transform"]}
    there = mz.ApplyTransformd(["moving", "label_moving"], like="fixed")(both)
    torch.testing.assert_close(there["moving"].as_tensor(), find(people)["moving"].as_tensor())
    back = mz.ApplyTransformd("label_fixed", like="moving", inverse=True)(both)
    assert back["label_fixed"].shape == people["label_moving"].shape
    given = mz.ApplyTransformd("moving", like="fixed", transform=both["transform"])(people)
    torch.testing.assert_close(given["moving"].as_tensor(), there["moving"].as_tensor())


def test_data_loaders_hand_transforms_through(people):
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[2], model="affine", levels=[4], iterations=3)
    (batch,) = DataLoader(Dataset([people, people], find), batch_size=2, collate_fn=list_data_collate)
    assert batch["moving"].shape == (2, *people["fixed"].shape)
    assert [type(one) for one in batch["transform"]] == [mz.Transform] * 2
    one = find.inverse(decollate_batch(batch)[0])
    assert one["moving"].shape == people["moving"].shape


def test_the_network_registers_in_a_compose(people):
    registrar = mz.Registrar("synthmorph", optimize=0, affine="none", average=[])
    find = mz.Registerd(["moving", "label_moving"], registrar=registrar, metrics="measures")
    found = Compose([find])(people)
    direct = registrar(people["moving"], people["fixed"])
    torch.testing.assert_close(found["moving"].as_tensor(), direct.warped.as_tensor().float(), atol=1e-3, rtol=1e-3)
    assert found["measures"]["ncc_after"] == direct.metrics["ncc_after"]
    assert find.inverse(found)["label_moving"].shape == people["label_moving"].shape


def test_files_are_loaded_scaled_and_registered(shifted, tmp_path):
    """The example of the documentation: what MONAI's users ask for, with MONAI's own transforms and losses."""
    item = {}
    for role, image in shifted.items():
        item[role] = str(tmp_path / f"{role}.nii.gz")
        nib.save(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()), item[role])
    pipeline = Compose(
        [
            LoadImaged(["moving", "fixed"]),
            EnsureChannelFirstd(["moving", "fixed"]),
            ScaleIntensityd(["moving", "fixed"]),
            mz.PairwiseRegistrationd(
                "moving",
                "fixed",
                loss=LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=7),
                model=["affine", "velocity"],
                levels=[4, 2],
                iterations=[40, 20],
            ),
        ]
    )
    found = pipeline(item)
    assert found["moving"].shape == found["fixed"].shape
    moved = found["transform"].points([[0.0, 0.0, 0.0]])
    assert np.abs(moved + 3).max() < 1
    assert (found["moving"] - found["fixed"]).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "bspline"}, "expected models among affine, velocity, displacement"),
        ({"levels": [2, 1], "iterations": [3]}, "expected iterations for 2 levels, got 1"),
        ({"weight": -1.0}, "expected weight to be"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        mz.PairwiseRegistrationd("moving", loss=LNCC[3], **options)


def test_a_loss_of_many_numbers_is_refused(people):
    find = mz.PairwiseRegistrationd("moving", loss=lambda a, b: a - b, levels=[4], iterations=1)
    with pytest.raises(ValueError, match="returns one number, got shape"):
        find(people)


def test_images_of_unequal_dimension_are_refused(people, shifted):
    find = mz.PairwiseRegistrationd("moving", loss=LNCC[3])
    with pytest.raises(ValueError, match="expected two images of one dimension"):
        find({"moving": people["moving"], "fixed": shifted["fixed"]})
