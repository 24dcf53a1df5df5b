"""Each step of a preparation: what it refuses, and what it does to images whose truth is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from preparation.cases import MOVED, SIZE, SPACING, write_person
from support import oriented

from custom_components.cohorts.middle import mean_stretch
from custom_components.preparation import steps
from custom_components.preparation.template import Template, averaged, first_template, named_template
from custom_components.space.volumes import load_image, load_labels
from custom_components.synthesis.noise import smooth_noise

BOTH = ("T1w", "T2w")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A person's scans and mask, by kind; the axes of the files are PIR."""
    folder = write_person(tmp_path_factory.mktemp("person"), 2)
    return {kind: str(folder / f"sub-02_{kind}.nii.gz") for kind in ("T1w", "T2w", "mask")}


@pytest.fixture
def item(files):
    images = {name: files[name] for name in BOTH}
    return steps.LoadSessiond(BOTH)({"images": images, "mask": files["mask"]})


def copy_of(path, target, *, shift=(0, 0, 0), crop=0, codes=None):
    image = nib.load(path)
    changed = image.slicer[crop:] if crop else image
    affine = changed.affine.copy()
    affine[:3, 3] += shift
    written = nib.Nifti1Image(np.asarray(changed.dataobj), affine)
    if codes is not None:
        written.set_sform(None, codes)
        written.set_qform(None, codes)
    nib.save(written, target)
    return str(target)


def test_a_session_has_its_images_and_the_mask_where_the_files_say(item, files):
    assert (item["T1w"].affine.numpy() == nib.load(files["T1w"]).affine).all()
    assert item[steps.MASK].shape == item["T1w"].shape
    assert set(item[steps.MASK].unique().tolist()) == {0, 1}


def test_a_header_without_orientation_is_refused(files, tmp_path):
    path = copy_of(files["T1w"], tmp_path / "lost.nii.gz", codes=0)
    with pytest.raises(ValueError, match="the header does not say how the image lies"):
        steps.LoadSessiond(BOTH)({"images": {"T1w": path}})


@pytest.mark.parametrize(
    ("change", "words"), [({"crop": 2}, "voxels, got"), ({"shift": (0, 3, 0)}, "it lies 3 mm elsewhere")]
)
def test_a_mask_on_another_grid_is_refused(files, tmp_path, change, words):
    mask = copy_of(files["mask"], tmp_path / "mask.nii.gz", **change)
    with pytest.raises(ValueError, match=f"expected a mask on the grid of .*{words}"):
        steps.LoadSessiond(BOTH)({"images": {"T1w": files["T1w"]}, "mask": mask})


def test_bias_correction_takes_away_much_of_a_known_field(item):
    image = item["T1w"].as_tensor()
    inside = item[steps.MASK].as_tensor() > 0
    field = smooth_noise(image.shape[1:], 24, 0.3, torch.Generator().manual_seed(0))[0]
    biased = {"T1w": steps.volume_of(item, "T1w").meta_tensor(image * field.exp())}
    corrected = steps.CorrectBiasd(("T1w",), spacing=8, iterations=(30, 30))(biased)["T1w"].as_tensor()
    clean = steps.CorrectBiasd(("T1w",), spacing=8, iterations=(30, 30))({"T1w": item["T1w"]})["T1w"].as_tensor()
    left = (corrected[inside] / clean[inside].clamp(min=1)).log()
    assert left.std() < 0.6 * field.expand_as(image)[inside].std()


@pytest.mark.slow
def test_contrasts_are_laid_on_the_reference_and_resampled_once(item):
    item = steps.Coregisterd(BOTH)(item)
    assert np.abs(item["maps"]["T2w"] - MOVED)[:3, 3].max() < 1.5
    result = steps.OnGridd(BOTH, spacing=5.0)({**item, "template": None})
    inside = result[steps.MASK].as_tensor() > 0
    pair = torch.stack([result[name].as_tensor()[inside] for name in BOTH])
    assert torch.corrcoef(pair)[0, 1] < -0.85
    assert result["T1w"][~inside].abs().max() == 0


def test_without_template_and_spacing_the_voxels_stay(item):
    item = steps.OnGridd(("T1w",), stripped=False)({**item, "template": None})
    original = nib.as_closest_canonical(nib.load(item["T1w"].meta["filename_or_obj"]))
    np.testing.assert_allclose(item["T1w"].affine.numpy(), original.affine, atol=1e-5)
    np.testing.assert_allclose(item["T1w"][0].numpy(), original.dataobj, atol=0.05)


def test_a_training_grid_has_its_size_about_the_templates_middle(item):
    item = steps.OnGridd(("T1w",), spacing=6.0, size=(24, 32, 20))({**item, "template": None})
    assert item["T1w"].shape == (1, 24, 32, 20)
    middle = item["T1w"].affine.numpy() @ [11.5, 15.5, 9.5, 1]
    np.testing.assert_allclose(middle, oriented("RAS", SIZE, SPACING) @ [*(np.array(SIZE) - 1) / 2, 1], atol=1e-3)


def test_a_grid_without_the_brain_is_refused(item):
    far = np.eye(4)
    far[0, 3] = 1000
    with pytest.raises(ValueError, match="nothing of the brain lies on the grid"):
        steps.OnGridd(("T1w",))({**item, "template": None, "to_template": far})


def test_the_template_of_another_species_is_refused(item, files):
    template = Template("mouse", *[_shrunk(read(files[k])) for read, k in ((load_image, "T1w"), (load_labels, "mask"))])
    with pytest.raises(ValueError, match="has 1e\\+03 times the size of the template's: another species"):
        steps.ToTemplated(BOTH)({**item, "template": template})


def _shrunk(volume):
    from dataclasses import replace

    return replace(volume, affine=np.diag([0.1, 0.1, 0.1, 1]) @ volume.affine)


@pytest.mark.parametrize("scheme", ["percentile", "zscore", "whitestripe", "nyul", "fcm", "none"])
def test_outside_of_the_brain_all_is_as_dark_as_nothing(item, scheme):
    scales = {name: [10.0 * k for k in range(11)] for name in BOTH}
    item = steps.OnGridd(BOTH)({**item, "template": None, "scales": scales})
    result = steps.Normalized(BOTH, scheme)(item)
    inside = result[steps.MASK].as_tensor() > 0
    for name in BOTH:
        outside = result[name].as_tensor()[~inside]
        assert outside.min() == outside.max() <= result[name].as_tensor()[inside].min()


def test_an_unknown_scheme_and_a_missing_t1w_are_refused(item):
    with pytest.raises(ValueError, match="--normalize: expected one of none, percentile"):
        steps.Normalized(BOTH, "histogram")
    with pytest.raises(ValueError, match="needs a T1w image, got T2w"):
        steps.Normalized(("T2w",), "fcm")(item)


def test_the_average_has_the_mean_size_of_its_members(files, tmp_path):
    image, mask = load_image(files["T1w"]), load_labels(files["mask"])
    template = first_template(image, mask)
    wide = np.diag([1.2, 1, 1, 1])  # a person as wide as 1.2 of the template, and the template itself
    stretch = mean_stretch([wide, np.eye(4)], template.image.grid.center)
    np.testing.assert_allclose(np.diag(stretch), [np.sqrt(1.2), 1, 1, 1])
    for name, volume in (("image", template.image), ("mask", template.mask)):
        np.save(tmp_path / f"{name}.npy", volume.data.float().numpy())
    paths = [[tmp_path / f"{name}.npy"] * 2 for name in ("image", "mask")]
    result = averaged(template, *paths, [wide, np.eye(4)])
    ratio = float(result.mask.data.sum()) / float(template.mask.data.sum())
    assert ratio == pytest.approx(np.sqrt(1.2), rel=0.03)


def test_rotations_do_not_stretch_the_average():
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.2, 0.1), [5, 6, 7])
    np.testing.assert_allclose(mean_stretch([turn, turn.T * 0 + np.eye(4)], np.zeros(3)), np.eye(4), atol=1e-9)


def test_templates_are_words_or_files(files):
    pytest.importorskip("nilearn")
    assert named_template("none") is None
    assert named_template(files["T1w"], files["mask"]).space == "sub02T1w"
    assert named_template("mni152").image.grid.size == (197, 233, 189)
    with pytest.raises(FileNotFoundError):
        named_template("nowhere.nii.gz")
