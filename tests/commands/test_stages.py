"""`--stages`: what a registration does, and that nothing is loaded for what it does not do."""

import json

import nibabel as nib
import numpy as np
import pytest
from support import run

import custom_components as mz
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.space import read_affine_transform
from custom_components.transforms.alignment import linear_stage


@pytest.mark.parametrize(
    ("stages", "last"),
    [
        (["rigid"], "rigid"),
        ("similarity", "similarity"),
        (["rigid", "affine", "deformable"], "affine"),
        (["deformable"], None),
    ],
)
def test_the_last_linear_stage_says_how_far_an_alignment_goes(stages, last):
    assert linear_stage(stages) == last


@pytest.mark.parametrize("stages", [[], ["elastic"], ["deformable", "rigid"], ["rigid", "rigid"]])
def test_other_stages_are_refused(stages):
    with pytest.raises(ValueError, match="--stages: expected names"):
        linear_stage(stages)


@pytest.mark.slow
def test_a_rigid_registration_writes_its_transforms_and_loads_no_network(scans, tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a network was made")

    monkeypatch.setattr(VoxelMorphUNet, "__init__", refused)
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["--label_moving", label_moving, "--label_fixed", label_fixed, "--stages", "rigid", "--affine", "torch"]
    assert run("register", moving, fixed, "-o", tmp_path, *words) is None
    (folder,) = (path.parent for path in tmp_path.glob("*/metrics.json"))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dice_after"] >= metrics["dice_before"] - 0.02
    assert metrics["displacement_mean_mm"] == 0
    linear = read_affine_transform(folder / "affine.tfm")[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)
    assert not (folder / "forward_field.nii.gz").exists()
    for name in ("warped.nii.gz", "warped_label.nii.gz"):
        assert (folder / name).is_file()


@pytest.mark.slow
def test_a_linear_registration_in_python_is_one_matrix_and_its_inverse(scans):
    result = mz.register(scans[0][0], scans[1][0], stages="translation", affine="torch")
    points = np.random.default_rng(0).normal(0, 20, (9, 3))
    moved = result.transform.points(points)
    np.testing.assert_allclose(moved - points, np.broadcast_to(moved[0] - points[0], (9, 3)), atol=1e-6)
    np.testing.assert_allclose(result.inverse.points(moved), points, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "rigid", "--optimize", 3], "deforms nothing: --optimize has no meaning"),
        (["--stages", "rigid", "--quality", "best"], "deforms nothing: --quality has no meaning"),
        (["--stages", "elastic"], "--stages: expected names"),
        (["--affine", "rigid"], "--stages rigid goes so far"),
    ],
)
def test_contradictions_are_refused_in_one_sentence(words, said, scans, tmp_path):
    assert said in run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", *words)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "itk"])
def test_images_that_lie_far_apart_are_laid_on_one_another(engine, scans, tmp_path):
    if engine == "itk":
        pytest.importorskip("itk")
    image = nib.load(scans[0][0])
    away = image.affine.copy()
    away[:3, 3] += [900, -500, 300]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), away), tmp_path / "away.nii.gz")
    words = ["--stages", "rigid", "--affine", engine]
    assert run("register", tmp_path / "away.nii.gz", scans[0][0], "-o", tmp_path / "out", *words) is None
    (path,) = tmp_path.glob("out/*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["image_ncc_after"] > 0.95
    assert not any(isinstance(value, float) and np.isnan(value) for value in metrics.values())
    with pytest.raises(ValueError, match="does not overlap"):
        mz.register(str(tmp_path / "away.nii.gz"), scans[0][0], affine="none", stages="rigid")
