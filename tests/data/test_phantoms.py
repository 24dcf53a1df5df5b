"""Claims: the phantom's map is the true one, smooth and invertible; files keep the anatomy in world space."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.data.phantoms import STRUCTURES, phantom_pair, random_velocity, write_phantom_scans
from custom_components.fields import compose, jacobian_determinant, warp


def test_warping_by_the_true_field_gives_the_fixed_phantom(phantoms):
    warped = warp(phantoms["moving"], phantoms["ddf"])
    error = (warped - phantoms["fixed"]).abs().mean()
    assert error < 0.15 * (phantoms["moving"] - phantoms["fixed"]).abs().mean()
    labels = warp(phantoms["label_moving"], phantoms["ddf"], mode="nearest")
    assert (labels != phantoms["label_fixed"]).float().mean() < 0.05


def test_the_true_map_does_not_fold_and_its_inverse_is_given(phantoms):
    assert jacobian_determinant(phantoms["ddf"]).min() > 0.2
    assert compose(phantoms["inverse_ddf"], phantoms["ddf"])[..., 4:-4, 4:-4].abs().max() < 0.1


def test_phantom_has_every_structure(phantoms):
    for key in ("label_moving", "label_fixed"):
        assert phantoms[key].unique().tolist() == [0, *STRUCTURES]
    assert phantoms["moving"].aminmax().min == 0
    assert phantoms["image"].shape[1] == 2


def test_phantoms_depend_on_the_seed_alone():
    first, again, other = (phantom_pair((20, 20), seed, noise=0.05)["fixed"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_of_a_batch_differ():
    pair = phantom_pair((20, 24), batch=2)
    assert pair["moving"].shape == (2, 1, 20, 24)
    assert not torch.equal(pair["ddf"][0], pair["ddf"][1])


def test_slab_moves_within_its_plane():
    ddf = phantom_pair((24, 24, 4))["ddf"]
    assert ddf[:, 2].abs().max() == 0
    assert ddf[:, :2].abs().max() > 0.5


@pytest.mark.parametrize("size", [(17, 12), (9, 16, 12)])
def test_random_velocity_has_the_amplitude_and_is_smooth(size):
    velocity = random_velocity(size, amplitude=2.5, generator=torch.Generator().manual_seed(0), batch=2)
    assert velocity.shape == (2, len(size), *size)
    torch.testing.assert_close(velocity.norm(dim=1).flatten(1).amax(1), torch.full((2,), 2.5))
    for axis in range(2, velocity.ndim):
        assert velocity.diff(dim=axis).abs().max() < 2.5 / 2


def test_random_velocity_of_one_dimension_is_refused():
    with pytest.raises(ValueError, match="2 or 3 axes"):
        random_velocity((8,))


@pytest.mark.parametrize("axcodes", ["RAS", "LIA", "PSR"])
def test_written_scans_keep_the_anatomy_whatever_the_orientation(tmp_path, axcodes):
    path = write_phantom_scans(tmp_path, 3, (16, 20, 18), spacing_mm=(1, 2, 3), axcodes=axcodes, num_validation=1)
    image = nib.load(tmp_path / "images" / "phantom_00.nii.gz")
    assert nib.aff2axcodes(image.affine) == tuple(axcodes)
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_allclose(canonical.header.get_zooms(), (1, 2, 3))
    expected = phantom_pair((16, 20, 18), 0, noise=0.02)["fixed"][0, 0]
    np.testing.assert_allclose(canonical.get_fdata(), expected.numpy(), atol=1e-6)
    sections = json.loads(Path(path).read_text())
    assert [len(sections[name]) for name in ("training", "validation", "validation_pairs")] == [2, 1, 0]


def test_written_slabs_of_a_plane_have_one_slice(tmp_path):
    write_phantom_scans(tmp_path, 4, (16, 20))
    assert nib.load(tmp_path / "labels" / "phantom_03.nii.gz").shape == (16, 20, 1)


def test_too_few_people_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2 people"):
        write_phantom_scans(tmp_path, 3, (16, 16))
