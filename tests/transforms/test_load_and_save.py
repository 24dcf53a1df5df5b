"""Loading pairs and scans, slicing, and saving a registered pair so that ITK agrees with what we write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import decollate_batch, list_data_collate
from space.cases import world_points
from support import ROTATION, blobs, oriented, published

from custom_components.data.batches import prepare_pair_batch
from custom_components.fields import compose, identity_grid, integrate_velocity
from custom_components.space import Frames, load_image, read_transform, transform_points_world, write_affine_transform
from custom_components.transforms.intensities import scale_intensity
from custom_components.transforms.labels import load_labels_for
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles
from custom_components.transforms.scan import LoadScand


def write_pair(folder: Path, fixed: tuple[str, tuple, tuple, bool], moving: tuple[str, tuple, tuple, bool]) -> dict:
    item = {}
    for role, (codes, size, spacing, oblique) in (("fixed", fixed), ("moving", moving)):
        affine = oriented(codes, size, spacing, oblique=oblique)
        image = blobs(size, affine, 0.0 if role == "fixed" else 1.5)
        nib.save(nib.Nifti1Image(image, affine), folder / f"{role}.nii.gz")
        nib.save(nib.Nifti1Image((image > 50).astype(np.uint8) * 7, affine), folder / f"{role}_seg.nii.gz")
        item |= {role: str(folder / f"{role}.nii.gz"), f"label_{role}": str(folder / f"{role}_seg.nii.gz")}
    return item


def registered(item: dict[str, Any], amplitude: float = 1.5) -> dict[str, Any]:
    """The item with a smooth random diffeomorphism as its prediction, decollated as the engine does."""
    size, d = item["fixed"].shape[1:], item["fixed"].ndim - 1
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, d, *[4] * d, generator=generator)
    mode = "bicubic" if d == 2 else "trilinear"
    velocity = torch.nn.functional.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True) * amplitude
    batch = list_data_collate([item])
    batch["pred"] = {"ddf": integrate_velocity(velocity), "inverse_ddf": integrate_velocity(-velocity)}
    return decollate_batch(batch)[0]


CASES = [
    pytest.param(("RAS", (20, 24, 18), (2, 2, 2), False), ("LIA", (31, 27, 33), (1.5, 1.5, 1.5), False), id="LIA"),
    pytest.param(("LPS", (25, 23, 17), (2, 1.5, 2.5), False), ("RAS", (24, 30, 21), (2, 1.6, 2), False), id="LPS"),
    pytest.param(("LIA", (21, 19, 25), (2, 2.4, 1.5), True), ("PSR", (30, 25, 27), (1.5, 2, 1.7), True), id="oblique"),
]


@pytest.mark.parametrize(("fixed", "moving"), CASES)
@pytest.mark.parametrize("aligned", [False, True])
def test_itk_resamples_the_original_as_we_do(tmp_path: Path, fixed: tuple, moving: tuple, aligned: bool) -> None:
    itk = pytest.importorskip("itk")
    item = write_pair(tmp_path, fixed, moving)
    if aligned:
        matrix = nib.affines.from_matvec(np.eye(3) + 0.05 * ROTATION, [2.0, -1, 1.5])
        write_affine_transform(tmp_path / "pre.tfm", matrix)
        item["affine"] = str(tmp_path / "pre.tfm")
    data = registered(LoadPaird(spacing=2.0)(item))
    result = published(data, tmp_path / "out", PairFiles())
    files = {kind: str(path) for kind, path in result.files.items()}
    assert ("affine" in files) == aligned
    assert result.folder.name == "fixed__moving"

    transform = itk.transformread(files["transform"])[0]
    target, original = (itk.imread(item[role], itk.F) for role in ("fixed", "moving"))
    warped = itk.array_from_image(itk.imread(files["warped"], itk.F))
    by_composite = itk_resample(itk, original, target, transform)
    separate = itk.CompositeTransform[itk.D, 3].New()
    if aligned:
        separate.AddTransform(itk.transformread(files["affine"])[0])
    separate.AddTransform(displacement_transform(itk, files["forward"]))
    by_parts = itk_resample(itk, original, target, separate)
    for theirs in (by_composite, by_parts):
        np.testing.assert_allclose(theirs, warped, atol=2e-3 * np.ptp(warped))
    # Not by chance: the images differ.
    identity = itk_resample(itk, original, target, itk.CompositeTransform[itk.D, 3].New())
    assert np.abs(identity - warped).mean() > 1e-2 * np.ptp(warped)

    inverse = itk.transformread(files["inverse_transform"])[0]
    center = original.TransformIndexToPhysicalPoint([n // 2 for n in itk.size(original)])
    there_and_back = np.array(list(transform.TransformPoint(inverse.TransformPoint(center))))
    assert np.linalg.norm(there_and_back - np.array(list(center))) < 0.2


@pytest.mark.parametrize(("fixed", "moving"), CASES)
def test_itk_and_we_agree_outside_of_the_fixed_image(tmp_path: Path, fixed: tuple, moving: tuple) -> None:
    """The images are crops: tissue and motion reach their borders, and the inverse is looked up beyond the grid."""
    itk = pytest.importorskip("itk")
    item = write_pair(tmp_path, fixed, moving)
    write_affine_transform(tmp_path / "pre.tfm", nib.affines.from_matvec(np.eye(3) + 0.05 * ROTATION, [2.0, -1, 1.5]))
    data = registered(LoadPaird(spacing=2.0, affine=str(tmp_path / "pre.tfm"))(item), amplitude=3)
    result = published(data, tmp_path / "out", PairFiles([*PairFiles().write, "warped_fixed"]))
    files = {kind: str(path) for kind, path in result.files.items()}
    transforms = {name: itk.transformread(files[name])[0] for name in ("transform", "inverse_transform")}
    target, original = (itk.imread(item[role], itk.F) for role in ("fixed", "moving"))
    back = itk.array_from_image(itk.imread(files["warped_fixed"], itk.F))
    theirs = itk_resample(itk, target, original, transforms["inverse_transform"])
    np.testing.assert_allclose(theirs, back, atol=2e-3 * np.ptp(back))

    points = np.random.default_rng(0).uniform(-120, 120, (400, 3))
    flip = np.array([-1, -1, 1])
    for name, transform in transforms.items():
        ours = transform_points_world(points, read_transform(files[name]))
        moved = [np.array(list(transform.TransformPoint(point.tolist()))) * flip for point in points * flip]
        np.testing.assert_allclose(ours, moved, atol=1e-4)
    parts = [*read_transform(files["forward"]), *read_transform(files["affine"])]
    np.testing.assert_allclose(
        transform_points_world(points, parts),
        transform_points_world(points, read_transform(files["transform"])),
        atol=1e-4,
    )


def itk_resample(itk: Any, image: Any, target: Any, transform: Any) -> np.ndarray:
    return itk.array_from_image(
        itk.resample_image_filter(image, transform=transform, use_reference_image=True, reference_image=target)
    )


def displacement_transform(itk: Any, path: str) -> Any:
    """The field as ITK itself reads it; points are looked up as double."""
    field = itk.imread(path)
    transform = itk.DisplacementFieldTransform[itk.F, 3].New()
    transform.SetDisplacementField(field)
    itk.transformwrite([transform], path + ".h5")
    return itk.transformread(path + ".h5")[0]


def test_forward_and_inverse_compose_to_the_identity(tmp_path: Path) -> None:
    data = registered(LoadPaird(spacing=2.0)(write_pair(tmp_path, *CASES[0].values)))
    residual = compose(data["pred"]["ddf"][None], data["pred"]["inverse_ddf"][None])
    assert residual.square().sum(1).sqrt()[:, 2:-2, 2:-2, 2:-2].mean() < 0.1


def test_pair_lands_on_one_grid_with_everything_collatable(tmp_path: Path) -> None:
    item = LoadPaird(spacing=3.0)(write_pair(tmp_path, *CASES[1].values))
    assert item["image"].shape == (2, *item["fixed"].shape[1:])
    assert torch.equal(item["image"][:1], item["moving"])
    assert 0 <= item["fixed"].min() < 0.01
    assert 0.8 < item["fixed"].max() <= 1
    assert item["label_fixed"].unique().tolist() == [0, 7]
    assert not item["label_fixed"].is_floating_point()
    assert item["world_matrix"].dtype == item["grid_affine"].dtype == torch.float64
    assert item["label_moving_path"].endswith("moving_seg.nii.gz")
    batch = list_data_collate([item, item])
    assert batch["image"].shape[0] == 2
    # The two grids show the same world: the formulas differ by a shift of 1.5 mm only.
    assert np.corrcoef(item["fixed"].flatten(), item["moving"].flatten())[0, 1] > 0.85


def test_outside_the_moving_image_stands_its_background_or_what_is_asked_for(tmp_path: Path) -> None:
    item = write_pair(tmp_path, *CASES[0].values)
    image = nib.load(item["moving"])
    crop = image.get_fdata(dtype="f4")[:, 6:-6] * 2 - 1000
    nib.save(nib.Nifti1Image(np.where(crop < -900, -1000, crop), image.affine), item["moving"])
    for fill, expected in ((None, -1000), (-5, -5)):
        data = registered(LoadPaird(spacing=2.0, fill=fill)(item))
        result = published(data, tmp_path / "out", PairFiles(["warped", "warped_fixed"]))
        warped = np.asarray(nib.load(result.files["warped"]).dataobj)
        assert (warped == expected).mean() > 0.1
        assert warped.min() >= -1000.01
        assert 0 in np.asarray(nib.load(result.files["warped_fixed"]).dataobj)


def test_a_window_limits_what_is_compared_but_not_what_is_written(tmp_path: Path) -> None:
    item = write_pair(tmp_path, *CASES[0].values)
    data = registered(LoadPaird(spacing=2.0, window=(50, 100))(item))
    assert data["fixed"].max() == 1
    assert (data["fixed"] == 1).float().mean() > 2 * (LoadPaird(spacing=2.0)(item)["fixed"] == 1).float().mean()
    warped = published(data, tmp_path / "out", PairFiles(["warped"])).files["warped"]
    assert np.asarray(nib.load(warped).dataobj).max() > 150
    with pytest.raises(ValueError, match=r"moving\.nii\.gz: all intensities, .* are on one side of the window"):
        LoadPaird(window=(1000, 2000))(item)
    with pytest.raises(ValueError, match="expected a window of two intensities, the lower one first"):
        LoadPaird(window=(100, 50))


def test_labels_are_saved_in_their_own_type(tmp_path: Path) -> None:
    data = registered(LoadPaird()(write_pair(tmp_path, *CASES[2].values)))
    dice = []
    for mode in ("nearest", "linear"):
        files = PairFiles(["warped_label", "warped_fixed"], label_mode=mode)
        result = published(data, tmp_path / mode, files)
        assert sorted(p.name for p in result.folder.iterdir()) == [
            "files.json",
            "warped_fixed.nii.gz",
            "warped_label.nii.gz",
        ]
        image = nib.load(result.files["warped_label"])
        assert image.get_data_dtype() == np.uint8
        assert image.shape == nib.load(data["fixed_path"]).shape
        dice.append(np.asarray(image.dataobj) == 7)
    assert 2 * (dice[0] & dice[1]).sum() / (dice[0].sum() + dice[1].sum()) > 0.95


def test_pairs_with_different_origins_in_the_plane(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "pairs2d_multimodal"
    item = {"id": "brain", "fixed": str(folder / "r16.nii.gz"), "moving": str(folder / "r64.nii.gz")}
    item |= {"mask_fixed": str(folder / "r16_mask.nii.gz"), "mask_moving": str(folder / "r64_mask.nii.gz")}
    write_affine_transform(tmp_path / "shift.tfm", np.array([[1.0, 0, -100], [0, 1, -100], [0, 0, 1]]))
    far, near = LoadPaird(spacing=2.0)(item), LoadPaird(spacing=2.0, affine=str(tmp_path / "shift.tfm"))(item)
    overlap = [(i["mask_fixed"] & i["mask_moving"]).sum() / i["mask_fixed"].sum() for i in (far, near)]
    assert overlap[0] < 0.6 < 0.9 < overlap[1]
    result = published(registered(near), tmp_path / "out", PairFiles())
    assert result.folder.name == "brain"
    warped = load_image(result.files["warped"])
    assert warped.data.shape == (1, 256, 256)
    itk = pytest.importorskip("itk")
    transform = itk.transformread(str(result.files["transform"]))[0]
    original, target = itk.imread(item["moving"], itk.F), itk.imread(item["fixed"], itk.F)
    theirs = itk_resample(itk, original, target, transform)
    np.testing.assert_allclose(theirs, warped.data[0].numpy().T, atol=2e-3 * 255)


def test_scans_meet_on_a_template_grid(tmp_path: Path) -> None:
    item = write_pair(tmp_path, *CASES[2].values)
    load = LoadScand(2.0, (16, 18, 20))
    fixed = load({"image": item["fixed"], "label": item["label_fixed"]})
    moving = load({"image": item["moving"], "label": item["label_moving"]})
    assert fixed["image"].shape == fixed["label"].shape == (1, 16, 18, 20)
    assert torch.equal(fixed["grid_affine"], moving["grid_affine"])
    labels_only = LoadScand(2.0, (16, 18, 20), center="mass")({"label": item["label_fixed"]})
    assert labels_only["label"].any()
    assert "image" not in labels_only
    with pytest.raises(ValueError, match="got the keys"):
        load({"scan": 1})


def test_another_contrast_of_a_scan_lands_on_the_same_grid(tmp_path: Path) -> None:
    item = write_pair(tmp_path, ("RAS", (20, 22, 24), (2, 2, 2), False), ("LPI", (24, 20, 22), (2, 2, 2), False))
    load = LoadScand(2.0, (16, 18, 20))
    both = load({"image": item["fixed"], "contrast": item["moving"], "label": item["label_fixed"]})
    alone = load({"image": item["moving"]})
    assert both["contrast_path"] == item["moving"]
    torch.testing.assert_close(both["contrast"], alone["image"])
    torch.testing.assert_close(both["image"], load({"image": item["fixed"]})["image"])


def test_scaling_is_robust_to_a_few_bright_voxels() -> None:
    image = torch.rand(1, 20, 20, 20)
    image[0, 0, 0, 0] = 1e4
    assert 0.4 < scale_intensity(image).mean() < 0.6
    sparse = torch.zeros(1, 20, 20, 20)
    sparse[0, 0, 0, 0] = 5
    assert scale_intensity(sparse).max() == 1


def test_labels_on_another_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = write_pair(tmp_path, *CASES[0].values)
    affine = oriented("LPI", (30, 30, 30), (2.0, 2.0, 2.0))
    nib.save(nib.Nifti1Image((blobs((30, 30, 30), affine) > 50).astype("u1") * 7, affine), tmp_path / "other.nii.gz")
    with caplog.at_level("INFO"):
        other = LoadPaird()({**item, "label_fixed": str(tmp_path / "other.nii.gz")})
    assert "another grid" in caplog.text
    a, b = LoadPaird()(item)["label_fixed"] > 0, other["label_fixed"] > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
    lost = nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), None)
    lost.set_sform(None, 0)
    lost.set_qform(None, 0)
    nib.save(lost, tmp_path / "lost.nii.gz")
    with pytest.raises(ValueError, match=r"no world frame"):
        LoadPaird()({**item, "label_fixed": str(tmp_path / "lost.nii.gz")})
    nib.save(nib.Nifti1Image(np.zeros((30, 30, 30), np.uint8), affine), tmp_path / "empty.nii.gz")
    LoadPaird()({**item, "label_fixed": str(tmp_path / "empty.nii.gz")})
    assert "label map is empty" in caplog.text


@pytest.mark.parametrize(
    ("affine", "said"), [(np.eye(4), "was the header lost"), (np.diag([3.0, 3, 3, 1]), "voxels away"), (None, "")]
)
def test_labels_of_the_images_size_that_lie_elsewhere_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, affine: np.ndarray | None, said: str
) -> None:
    place = np.diag([3.0, 3, 3, 1])
    place[:3, 3] = -20
    nib.save(nib.Nifti1Image(blobs((8, 8, 8), place), place), tmp_path / "image.nii.gz")
    where = place if affine is None else affine
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), where), tmp_path / "label.nii.gz")
    load_labels_for(str(tmp_path / "label.nii.gz"), load_image(tmp_path / "image.nii.gz"))
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_pairs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    item = write_pair(tmp_path, *CASES[0].values)
    nib.save(nib.Nifti1Image(blobs((8, 8, 1), np.eye(4)), np.eye(4)), tmp_path / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 3), "f4"), np.eye(4)), tmp_path / "three.nii.gz")
    with pytest.raises(ValueError, match="of one dimension"):
        LoadPaird()({**item, "moving": str(tmp_path / "flat.nii.gz")})
    flat = dict.fromkeys(("moving", "fixed"), str(tmp_path / "flat.nii.gz"))
    assert LoadPaird(spatial_dims=2)(flat)["image"].shape == (2, 8, 8)
    with pytest.raises(ValueError, match=r"expected 3-D images, .*flat\.nii\.gz of shape \(8, 8, 1\); .*inference_2d"):
        LoadPaird(spatial_dims=3)(flat)
    with pytest.raises(ValueError, match="one channel"):
        LoadPaird()({**item, "moving": str(tmp_path / "three.nii.gz")})
    with pytest.raises(ValueError, match="under 'moving'"):
        LoadPaird()({"fixed": item["fixed"]})
    with pytest.raises(FileNotFoundError, match="no such transform file"):
        LoadPaird(affine=str(tmp_path / "missing.tfm"))(item)


@pytest.mark.parametrize("d", [2, 3])
def test_the_jacobian_is_of_the_whole_map_on_the_fixed_images_grid(tmp_path: Path, d: int) -> None:
    rates = [0.1, -0.05, 0.02][:d]
    rng = np.random.default_rng(0)
    for role in ("moving", "fixed"):
        image = nib.Nifti1Image(rng.random((9, 10, 11)[:d]).astype("f4"), np.diag([-1.5, 2, 2.5, 1]))
        nib.save(image, tmp_path / f"{role}.nii.gz")
    write_affine_transform(tmp_path / "pre.tfm", np.diag([*[1.2, 0.9, 1.1][:d], 1.0]))
    item = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    data = LoadPaird(2.0, str(tmp_path / "pre.tfm"))(item)
    ddf = torch.stack([rate * x for rate, x in zip(rates, identity_grid(data["fixed"].shape[1:]), strict=True)])
    data["pred"] = {"ddf": ddf, "warped": data["fixed"]}
    files = published(data, tmp_path / "out", PairFiles(["jacobian", "log_jacobian"])).files
    expected = np.prod(1 + np.array(rates)) * np.prod([1.2, 0.9, 1.1][:d])
    image = nib.load(files["jacobian"])
    assert image.shape == nib.load(item["fixed"]).shape
    np.testing.assert_allclose(image.affine, nib.load(item["fixed"]).affine)
    np.testing.assert_allclose(image.get_fdata(), expected, rtol=1e-4)
    np.testing.assert_allclose(nib.load(files["log_jacobian"]).get_fdata(), np.log(expected), atol=1e-4)


def test_transforms_are_written_for_other_tools_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    data = registered(LoadPaird(spacing=3.0)(write_pair(tmp_path, *CASES[0].values)))
    names = ["fsl", "freesurfer", "ants", "afni"]
    result = published(data, tmp_path / "out", PairFiles(["composite"], write_as=names), PairReport(picture=False))
    assert any("afni" in warning and "not written" in warning for warning in result.metrics["warnings"])
    frames = Frames.of_files(data["fixed_path"], data["moving_path"])
    for name, known in (("transform", frames), ("inverse_transform", frames.swapped())):
        composite = read_transform(result.files[name])
        start = known.fixed.grid
        points = world_points(start)[::29]
        expected = transform_points_world(points, composite)
        others = [f"{name}_fsl.nii.gz", f"{name}_freesurfer.mgz", f"{name}_ants_"]
        for other in others:
            found = transform_points_world(points, read_transform(result.folder / other, known))
            assert np.abs(found - expected).max() < 1e-3 * start.spacing.min()


def test_results_stay_when_a_later_run_fails(tmp_path: Path) -> None:
    data = registered(LoadPaird(spacing=3.0)(write_pair(tmp_path, *CASES[0].values)))
    save = PairFiles(["warped", "jacobian", "forward"])
    result = published(data, tmp_path / "out", save)
    before = {path.name: path.read_bytes() for path in result.folder.iterdir()}
    data["pred"]["ddf"] = data["pred"]["ddf"][:, 1:]
    with pytest.raises(ValueError, match=r"expected pred\['ddf'\] of shape"):
        published(data, tmp_path / "out", save)
    assert {path.name: path.read_bytes() for path in result.folder.iterdir()} == before
    with pytest.raises(ValueError, match="expected outputs among"):
        PairFiles(["wraped"])


class TestHalvedGrid:
    """`LoadPaird(halve=True)`: half the spacing where it shows more."""

    FINE = ("RAS", (40, 36, 44), (1, 1, 1), False)
    THICK = ("LIA", (30, 12, 30), (1.5, 5, 1.5), False)

    def test_of_two_fine_images(self, tmp_path: Path) -> None:
        item = LoadPaird(2.0, halve=True)(write_pair(tmp_path, self.FINE, self.FINE))
        assert item["finer"] == 2
        assert item["image"].shape == (2, 40, 36, 44)
        plain = LoadPaird(2.0)(write_pair(tmp_path, self.FINE, self.FINE))
        assert "finer" not in plain
        _, _, _, options = prepare_pair_batch(list_data_collate([item]))
        assert options["finer"] == 2

    @pytest.mark.parametrize("coarse", ["fixed", "moving"])
    def test_not_where_one_image_is_coarse(self, tmp_path: Path, coarse: str) -> None:
        kinds = {role: self.THICK if role == coarse else self.FINE for role in ("fixed", "moving")}
        item = LoadPaird(2.0, halve=True)(write_pair(tmp_path, **kinds))
        assert item["finer"] == 1
        np.testing.assert_allclose(np.linalg.norm(item["grid_affine"][:3, :3], axis=0), 2)
        assert "finer" not in prepare_pair_batch(list_data_collate([item]))[3]

    def test_not_where_it_would_be_too_much_and_the_log_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("custom_components.space.fit.MOST_HALVED_VOXELS", 20000)
        with caplog.at_level("INFO"):
            item = LoadPaird(2.0, halve=True)(write_pair(tmp_path, self.FINE, self.FINE))
        assert item["finer"] == 1
        assert "the grid stays at 2 x 2 x 2 mm" in caplog.text
