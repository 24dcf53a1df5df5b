"""A transform moves points and images, composes, inverts, and is read back as it was saved."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from support import blobs, oriented

from custom_components.fields import identity_grid, integrate_velocity
from custom_components.space import DisplacementField, Grid, load_image
from custom_components.space.transform import Transform

SIZE = (24, 22, 20)


@pytest.fixture(scope="module")
def grid():
    return Grid(oriented("LIA", SIZE, (2.0, 2.5, 3.0), oblique=True), SIZE)


@pytest.fixture(scope="module")
def matrix():
    return nib.affines.from_matvec(np.eye(3) + 0.05 * np.array([[0, 1, 0], [-1, 0, 1], [0, 0, 1]]), [3.0, -2, 1])


@pytest.fixture(scope="module")
def curved(grid):
    """A smooth field that vanishes at the border, with its inverse."""
    x = identity_grid(SIZE) / torch.tensor(SIZE).view(3, 1, 1, 1)
    bump = (torch.pi * x).sin().prod(0).square()
    velocity = torch.stack([1.5 * bump, -bump, bump * (6 * x[0]).cos()])[None]
    ddfs = [integrate_velocity(sign * velocity)[0] for sign in (1, -1)]
    steps = [(DisplacementField(ddf, grid),) for ddf in ddfs]
    return Transform(*steps)


@pytest.fixture(scope="module")
def points(grid):
    index = np.random.default_rng(0).uniform(4, 15, (50, 3))
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_a_matrix_moves_points_as_it_says_and_back(matrix, points):
    phi = Transform((matrix,))
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(phi.points(points), moved, atol=1e-9)
    np.testing.assert_allclose(phi.inverse().points(moved), points, atol=1e-9)
    np.testing.assert_allclose(phi.matrix, matrix)


def test_the_inner_map_of_a_composition_comes_first(matrix, curved, points):
    affine = Transform((matrix,), (np.linalg.inv(matrix),))
    both = affine @ curved
    np.testing.assert_allclose(both.points(points), affine.points(curved.points(points)), atol=1e-9)
    assert both.matrix is None
    back = both.inverse().points(both.points(points))
    assert np.abs(back - points).max() < 0.1  # mm, voxels have 2 to 3


def test_an_inverse_that_is_not_known_is_found(curved, points):
    found = Transform(curved.steps).inverse()
    assert np.abs(found.points(curved.points(points)) - points).max() < 0.1
    assert found.inverse().steps is curved.steps


def test_a_field_that_folds_has_no_inverse(grid):
    ddf = torch.zeros(3, *SIZE)
    ddf[0, 8:12] = torch.tensor([4.0, 2, -2, -4]).view(-1, 1, 1)
    with pytest.raises(ValueError, match="has no inverse that can be found"):
        Transform((DisplacementField(ddf, grid),)).inverse()


def test_an_image_is_looked_up_where_the_points_go(matrix, curved, grid):
    """The image is a formula of the world, so that its values at the moved points are known."""
    phi = Transform((matrix,)) @ curved
    image = image_of(blobs((90,) * 3, large := oriented("RAS", (90,) * 3, (0.8,) * 3)), large)
    warped = phi.warp(image, MetaTensor(torch.zeros(1, *SIZE), affine=torch.from_numpy(grid.affine)))
    assert warped.shape == (1, *SIZE)
    np.testing.assert_allclose(warped.affine, grid.affine)
    index = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).reshape(-1, 3)
    moved = phi.points(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    x, y, z = moved.T
    truth = 100 * np.exp(-(x**2 + y**2 + z**2) / 400) * (2 + np.sin(x / 4) + np.cos(y / 5) * np.sin(z / 3))
    inside = (np.abs(moved) < 30).all(1)
    assert np.abs(warped.numpy().ravel() - truth)[inside].max() < 2  # of 300: linear interpolation


def image_of(array, affine):
    return nib.Nifti1Image(array, affine)


def test_the_displacement_is_that_of_voxel_centres(matrix, grid):
    moved = Transform((matrix,)).displacement((np.zeros(SIZE), grid.affine))
    center = grid.affine @ [5, 6, 7, 1]
    np.testing.assert_allclose(moved[:, 5, 6, 7], (matrix @ center - center)[:3], atol=1e-4)


def test_labels_keep_their_type_and_channels_their_number(curved, grid):
    labels = MetaTensor(torch.randint(0, 3, (2, *SIZE)), affine=torch.from_numpy(grid.affine))
    warped = curved.warp(labels, labels, interpolation="nearest")
    assert warped.shape == labels.shape
    assert not warped.is_floating_point()
    assert curved.warp(labels.float(), labels, interpolation="linear").dtype == torch.float32


def test_a_saved_transform_is_read_as_it_was(matrix, curved, points, tmp_path):
    pytest.importorskip("itk")
    phi = Transform((matrix,)) @ curved
    phi.save(tmp_path / "phi.h5")
    np.testing.assert_allclose(Transform.read(tmp_path / "phi.h5").points(points), phi.points(points), atol=1e-3)


def test_a_flat_transform_moves_flat_points_and_images():
    shift = np.array([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])
    phi = Transform((shift,))
    np.testing.assert_allclose(phi.points([[1.0, 1.0]]), [[3.0, 1.0]])
    image = (np.arange(20.0).reshape(5, 4), np.eye(4))
    warped = phi.warp(image, image, fill=-1)
    np.testing.assert_allclose(warped[0, :3], image[0][2:])
    assert (warped[0, 3:] == -1).all()


@pytest.mark.parametrize("bad", [[1.0, 2, 3], [[1.0, 2]], [[np.nan, 0, 0]]])
def test_what_are_no_points_is_refused(bad, matrix):
    with pytest.raises(ValueError, match=r"expected (finite )?points"):
        Transform((matrix,)).points(bad)


def test_transforms_of_two_and_three_dimensions_do_not_compose(matrix):
    with pytest.raises(ValueError, match="steps of"):
        _ = Transform((matrix,)) @ Transform((np.eye(3),))


def test_an_image_of_a_file_is_taken_by_its_path(matrix, grid, tmp_path):
    path = tmp_path / "image.nii.gz"
    nib.save(image_of(blobs(SIZE, grid.affine), grid.affine), path)
    image = load_image(path)
    here = Transform((np.eye(4),)).warp(path, path)
    torch.testing.assert_close(here.as_tensor(), image.data, atol=1e-3, rtol=0)
