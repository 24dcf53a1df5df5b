"""Images of nibabel, ITK and MONAI, and arrays with affines, are read as the same image from a file is."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flip
from support import blobs, oriented

from custom_components.space import load_grid, load_image, load_labels
from custom_components.space.components import load_components
from custom_components.space.memory_images import source_of, to_nibabel
from custom_components.space.volumes import spatial_dims_of

SIZE, SPACING = (9, 7, 6), (1.5, 2.0, 3.0)


@pytest.fixture(scope="module", params=["RAS", "LIA", "oblique"])
def file(request, tmp_path_factory):
    codes, oblique = ("RAS", True) if request.param == "oblique" else (request.param, False)
    affine = oriented(codes, SIZE, SPACING, oblique=oblique)
    path = tmp_path_factory.mktemp("file") / "image.nii.gz"
    nib.save(nib.Nifti1Image(blobs(SIZE, affine), affine), path)
    return path


def forms(path):
    """The image of a file in every form that it can have in memory."""
    itk = pytest.importorskip("itk")
    image = nib.load(path)
    array, affine = image.get_fdata(dtype="f4"), load_image(path).affine
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    return {
        "path": path,
        "nibabel": image,
        "itk": itk.imread(str(path)),
        "MetaTensor": MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine)),
        "in LPS": MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(lps), meta={"space": "LPS"}),
        "array": (array, affine),
        "tensor": (torch.from_numpy(array), affine.tolist()),
    }


def test_every_form_of_an_image_is_the_same_volume(file):
    wanted = load_image(file)
    for name, image in forms(file).items():
        found = load_image(source_of(image, "image"))
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4, err_msg=name)
        assert torch.equal(found.data, wanted.data), name
        assert found.path == (str(file) if name == "path" else "image")
        assert load_grid(source_of(image, "image")).grid.size == SIZE
        assert spatial_dims_of(source_of(image, "image")) == 3


def test_pending_operations_of_a_lazy_tensor_are_applied_first(file):
    image = load_image(file)
    tensor = MetaTensor(image.data, affine=torch.from_numpy(image.affine))
    lazy = Flip(spatial_axis=0, lazy=True)(tensor)
    assert lazy.pending_operations
    found = load_image(source_of(lazy, "moving"))
    torch.testing.assert_close(found.data, image.data.flip(1))
    first = image.affine @ [SIZE[0] - 1, 0, 0, 1]  # the first voxel now lies where the last one lay
    np.testing.assert_allclose(found.affine[:, 3], first, atol=1e-4)


def test_two_dimensional_images_lie_in_their_plane():
    array = np.arange(30.0).reshape(6, 5)
    flat = np.array([[2.0, 0, 1], [0, 3, -1], [0, 0, 1]])
    for affine in (flat, np.array([[2.0, 0, 0, 1], [0, 3, 0, -1], [0, 0, 1, 7], [0, 0, 0, 1]])):
        volume = load_image(source_of((array, affine), "slice"))
        assert volume.data.shape == (1, 6, 5)
        np.testing.assert_allclose(volume.affine, flat)
    tensor = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))
    np.testing.assert_allclose(load_image(source_of(tensor, "slice")).affine, flat)


def test_labels_keep_their_type_and_channels_stay_together():
    labels = torch.arange(24).reshape(1, 4, 3, 2)
    assert load_labels(source_of(MetaTensor(labels), "labels")).data.dtype == torch.int16
    three = MetaTensor(torch.rand(3, 4, 3, 2))
    found = load_components(source_of(three, "three"))
    assert np.array_equal(found.data, three.numpy())
    with pytest.raises(ValueError, match="three: expected a 2-D or 3-D image with one channel"):
        load_image(source_of(three, "three"))


def test_images_of_other_content_have_another_origin():
    one = load_image(source_of((np.eye(5), np.eye(4)), "moving"))
    other = load_image(source_of((1 - np.eye(5), np.eye(4)), "moving"))
    moved = load_image(source_of((np.eye(5), np.diag([2.0, 2, 2, 1])), "moving"))
    assert len({one.origin, other.origin, moved.origin}) == 3
    assert one.origin == load_image(source_of((np.eye(5), np.eye(4)), "moving")).origin


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.eye(5), "fixed: expected a path, an image of nibabel or ITK, .*, got ndarray of shape .5, 5."),
        (None, "fixed: expected a path, .* got None"),
        ((np.zeros(5), np.eye(4)), "fixed: expected an array of 2 or 3 axes with its affine, got shape .5,."),
        ((np.eye(5), np.eye(2)), r"fixed: expected an affine .4, 4. to RAS mm, got shape .2, 2."),
        ((np.eye(5), "none"), r"fixed: expected an affine .4, 4. to RAS mm"),
        ((np.eye(5), np.zeros((4, 4))), "fixed: expected an invertible affine"),
        ((np.eye(5), np.full((4, 4), np.nan)), "fixed: expected an invertible affine"),
        ((np.full((5, 5), np.nan), np.eye(4)), "fixed: expected an image, got NaN in every voxel"),
        ((np.ones((5, 5)), np.eye(4)), "fixed: expected an image, got the constant 1"),
        (MetaTensor(torch.zeros(4, 4)), r"fixed: expected a MetaTensor .C, \*S. with 2 or 3 spatial axes"),
    ],
    ids=range(10),
)
def test_what_is_no_image_is_refused_in_one_sentence(image, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_image(source_of(image, "fixed"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[0, 1], [0, 2**33], [-5, 7]])
def test_64_bit_and_boolean_arrays_leave_with_their_numbers(values: list[int]) -> None:
    for array in (torch.tensor(values), torch.tensor([value > 0 for value in values])):
        image = MetaTensor(array.reshape(1, 2, 1, 1), affine=torch.eye(4))
        np.testing.assert_array_equal(np.asarray(to_nibabel(image).dataobj).ravel(), array.numpy())
