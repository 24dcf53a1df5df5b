"""Transforms in the dialects of other tools: written, read back, made by hand, and golden files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from space.cases import noise, save, world_points

from benchmarks.dialects import ORIENTATIONS
from custom_components.fields import identity_grid
from custom_components.space import (
    DisplacementField,
    Frames,
    Step,
    model_grid,
    read_transform,
    transform_points_world,
    write_transform,
)

MATRIX_FILES = {"itk": "a.tfm", "ants": "a_", "fsl": "a.mat", "freesurfer": "a.lta", "afni": "a.aff12.1D", "x5": "a.x5"}
FIELD_FILES = {"itk": "a.nii.gz", "ants": "a_", "fsl": "a.nii.gz", "freesurfer": "a.mgz", "x5": "a.x5"}
NEEDS = {"ants": "itk", "x5": "nitransforms"}


def frames_of(folder: Path, fixed: str, moving: str | None = None) -> Frames:
    """Images of unlike sizes in two orientations, about the same place."""
    paths = []
    for name, size in ((fixed, (20, 24, 18)), (moving or fixed, (22, 19, 25))):
        affine = nib.affines.from_matvec(ORIENTATIONS[name])
        affine[:3, 3] = np.array([5.0, -8, 12]) + len(paths) - affine[:3, :3] @ (np.array(size) - 1) / 2
        paths.append(save(folder / f"{len(paths)}.nii.gz", noise(*size), affine))
    return Frames.of_files(*paths)


def affine() -> np.ndarray:
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(x=0.1, y=0.05, z=-0.15) * 1.05, [4.0, 2, -1])


def dense(frames: Frames) -> DisplacementField:
    """A smooth field of a few millimetres on a model grid."""
    assert frames.fixed
    grid = model_grid(frames.fixed.affine, frames.fixed.grid.size, 3.0)
    voxels = identity_grid(grid.size, dtype=torch.float32)
    return DisplacementField(torch.stack([0.6 * torch.sin(voxels[(i + 1) % 3] / 3 + i) for i in range(3)]), grid)


def points_of(frames: Frames) -> np.ndarray:
    """Voxel centres of the fixed image."""
    assert frames.fixed
    return world_points(frames.fixed.grid)[::17]


def apart(steps: list[Step], others: list[Step], frames: Frames) -> float:
    """Largest distance of two transforms in voxels of the finer image."""
    points = points_of(frames)
    mm = np.linalg.norm(transform_points_world(points, steps) - transform_points_world(points, others), axis=1).max()
    assert frames.fixed
    assert frames.moving
    return float(mm / min(*frames.fixed.grid.spacing, *frames.moving.grid.spacing))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("dialect", MATRIX_FILES)
def test_a_matrix_comes_back_from_every_dialect(tmp_path: Path, dialect: str, orientation: str) -> None:
    pytest.importorskip(NEEDS.get(dialect, "numpy"))
    for moving in ("RAS", orientation):
        frames = frames_of(tmp_path, orientation, moving)
        write_transform(tmp_path / MATRIX_FILES[dialect], [affine()], frames, dialect=dialect)
        assert apart(read_transform(tmp_path / MATRIX_FILES[dialect], frames), [affine()], frames) < 1e-6


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("dialect", FIELD_FILES)
def test_a_field_and_a_matrix_come_back_from_every_dialect(tmp_path: Path, dialect: str, orientation: str) -> None:
    pytest.importorskip(NEEDS.get(dialect, "numpy"))
    for moving in ("LPS", orientation):
        frames = frames_of(tmp_path, orientation, moving)
        steps = [dense(frames), affine()]
        write_transform(tmp_path / FIELD_FILES[dialect], steps, frames, dialect=dialect)
        assert apart(read_transform(tmp_path / FIELD_FILES[dialect], frames), steps, frames) < 1e-4


def test_a_warp_of_fsl_that_scales_much_comes_back(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, "RAS", "RAS")
    steps = [dense(frames), np.diag([1.6, 1.6, 1.6, 1])]
    write_transform(tmp_path / "a.nii.gz", steps, frames, dialect="fsl")
    assert apart(read_transform(tmp_path / "a.nii.gz", frames, dialect="fsl"), steps, frames) < 1e-4


def test_a_later_pair_of_ants_has_no_part_of_an_earlier_one(tmp_path: Path) -> None:
    pytest.importorskip("itk")
    frames = frames_of(tmp_path, "RAS", "RAS")
    write_transform(tmp_path / "a_", [dense(frames), affine()], frames, dialect="ants")
    write_transform(tmp_path / "a_", [affine()], frames, dialect="ants")
    assert apart(read_transform(tmp_path / "a_", frames), [affine()], frames) < 1e-6


@pytest.mark.parametrize(("dialect", "name"), [("itk", "a.h5"), ("itk", "a.nii.gz"), ("ants", "a_")])
def test_transforms_of_2d_points_come_back(tmp_path: Path, dialect: str, name: str) -> None:
    pytest.importorskip("itk")
    image = save(tmp_path / "flat.nii.gz", noise(20, 24), np.diag([-1.5, 2, 1, 1]))
    frames = Frames.of_files(image, image)
    assert frames.fixed
    matrix = np.array([[1.05, 0.1, 2], [-0.1, 0.98, -1], [0, 0, 1]])
    steps = [DisplacementField(torch.sin(identity_grid((20, 24)) / 5), frames.fixed.grid), matrix]
    write_transform(tmp_path / name, steps, frames, dialect=dialect)
    assert apart(read_transform(tmp_path / name), steps, frames) < 1e-4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_flirts_matrix_of_equal_voxels_is_the_identity_and_of_a_shift_has_it_in_its_own_axes(
    tmp_path: Path, orientation: str
) -> None:
    frames = frames_of(tmp_path, orientation)
    assert frames.fixed
    same = Frames(frames.fixed, frames.fixed)
    shift = np.array([3, -2, 4])  # voxels; content of the moving image lies further on
    world = nib.affines.from_matvec(np.eye(3), ORIENTATIONS[orientation] @ shift)
    write_transform(tmp_path / "a.mat", [world], same, dialect="fsl")
    spacing = frames.fixed.grid.spacing
    sign = -1.0 if np.linalg.det(ORIENTATIONS[orientation]) > 0 else 1.0
    expected = nib.affines.from_matvec(np.eye(3), -shift * spacing * [sign, 1, 1])
    np.testing.assert_allclose(np.loadtxt(tmp_path / "a.mat"), expected, atol=1e-9)
    np.savetxt(tmp_path / "identity.mat", np.eye(4))
    np.testing.assert_allclose(read_transform(tmp_path / "identity.mat", same)[0], np.eye(4), atol=1e-12)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("absolute", [False, True])
def test_fnirts_warp_of_a_known_shift(tmp_path: Path, orientation: str, absolute: bool) -> None:
    frames = frames_of(tmp_path, orientation)
    assert frames.fixed
    same, size, spacing = Frames(frames.fixed, frames.fixed), frames.fixed.grid.size, frames.fixed.grid.spacing
    shift = np.array([3, -2, 4])
    sign = -1.0 if np.linalg.det(ORIENTATIONS[orientation]) > 0 else 1.0
    warp = np.broadcast_to(shift * spacing * [sign, 1, 1], (*size, 3)).copy()
    if absolute:
        index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
        index[..., 0] = size[0] - 1 - index[..., 0] if sign < 0 else index[..., 0]
        warp += index * spacing
    save(tmp_path / "warp.nii.gz", warp.astype(np.float32), frames.fixed.affine)
    expected = [nib.affines.from_matvec(np.eye(3), ORIENTATIONS[orientation] @ shift)]
    assert apart(read_transform(tmp_path / "warp.nii.gz", same), expected, same) < 1e-5


@pytest.mark.parametrize(("kind", "orientation"), [(kind, name) for kind in (0, 1) for name in ORIENTATIONS])
def test_an_lta_leads_from_moving_to_fixed_voxels_or_world(tmp_path: Path, kind: int, orientation: str) -> None:
    frames = frames_of(tmp_path, orientation, "anisotropic")
    assert frames.fixed
    assert frames.moving
    write_transform(tmp_path / "a.lta", [affine()], frames)
    matrix = np.linalg.inv(affine())
    if kind == 0:
        matrix = np.linalg.inv(frames.fixed.affine) @ matrix @ frames.moving.affine
    lines = (tmp_path / "a.lta").read_text().splitlines()
    lines[0] = f"type      = {kind}"
    lines[5:9] = [" ".join(map(repr, map(float, row))) for row in matrix]
    (tmp_path / "a.lta").write_text("\n".join(lines))
    assert apart(read_transform(tmp_path / "a.lta"), [affine()], frames) < 1e-6


@pytest.mark.parametrize("text", ["# a\n1 0 0 -4 0 1 0 -2 0 0 1 -1\n", "1 0 0 -4\n0 1 0 -2\n0 0 1 -1\n"])
def test_afnis_numbers_lead_from_fixed_to_moving_points_in_lps(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.aff12.1D").write_text(text)
    expected = nib.affines.from_matvec(np.eye(3), [4, 2, -1])
    np.testing.assert_allclose(read_transform(tmp_path / "a.aff12.1D")[0], expected)


def test_afni_lets_an_oblique_image_lie_along_the_axes_from_the_same_first_voxel(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, "oblique")
    assert frames.fixed
    same = Frames(frames.fixed, frames.fixed)
    (tmp_path / "a.1D").write_text("1 0 0 -4 0 1 0 -6 0 0 1 8\n")  # voxels 2, 3 and 4, were the image not oblique
    shift = ORIENTATIONS["oblique"] @ [2, 3, 4]
    assert apart(read_transform(tmp_path / "a.1D", same), [nib.affines.from_matvec(np.eye(3), shift)], same) < 1e-6


@pytest.mark.parametrize("d", [2, 3])
def test_itks_translations_rotations_and_similarities_are_read(tmp_path: Path, d: int) -> None:
    itk = pytest.importorskip("itk")
    centred = [itk.Euler2DTransform, itk.Similarity2DTransform] if d == 2 else []
    centred += [itk.Euler3DTransform, itk.VersorRigid3DTransform, itk.Similarity3DTransform] if d == 3 else []
    kinds = [itk.TranslationTransform[itk.D, d], itk.IdentityTransform[itk.D, d], itk.ScaleTransform[itk.D, d]]
    flip = np.array([-1, -1, 1][:d])
    for kind in [*(one[itk.D] for one in centred), *kinds]:
        transform = kind.New()
        numbers = 0.1 * np.arange(1, transform.GetNumberOfParameters() + 1) + (kind is kinds[2])
        parameters = transform.GetParameters()
        for i, number in enumerate(numbers):
            parameters[i] = float(number)
        transform.SetParameters(parameters)
        itk.transformwrite([transform], str(tmp_path / "a.tfm"))
        point = np.arange(1.0, d + 1)
        theirs = np.array(list(transform.TransformPoint(point.tolist())))
        ours = transform_points_world((point * flip)[None], read_transform(tmp_path / "a.tfm"))[0] * flip
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind other steps"])
def test_itks_b_spline_is_exact_on_the_fixed_grid_and_close_on_its_own(tmp_path: Path, behind: bool) -> None:
    itk = pytest.importorskip("itk")
    frames = frames_of(tmp_path, "RAS")
    transform = itk.BSplineTransform[itk.D, 3, 3].New()
    transform.SetTransformDomainOrigin([-60.0, -60, -60])
    transform.SetTransformDomainPhysicalDimensions([120.0, 120, 120])
    transform.SetTransformDomainMeshSize([5, 5, 5])
    parameters = itk.OptimizerParameters[itk.D](transform.GetNumberOfParameters())
    for i in range(transform.GetNumberOfParameters()):
        parameters[i] = 3 * float(np.sin(i))
    transform.SetParameters(parameters)
    if behind:
        spline, transform = transform, itk.CompositeTransform[itk.D, 3].New()
        turn, shift = itk.Euler3DTransform[itk.D].New(), itk.TranslationTransform[itk.D, 3].New()
        turn.SetRotation(0.2, -0.1, 0.3)
        shift.SetOffset([1.5, -2.0, 0.7])
        for part in (shift, spline, turn):  # the last one is applied first
            transform.AddTransform(part)
    itk.transformwrite([transform], str(tmp_path / "a.h5"))
    flip = np.array([-1, -1, 1])
    points = points_of(frames)
    theirs = np.array([list(transform.TransformPoint(point.tolist())) for point in points * flip]) * flip
    for known, tolerance in ((frames, 1e-4), (Frames(), 0.03)):
        ours = transform_points_world(points, read_transform(tmp_path / "a.h5", known))
        assert np.abs(ours - theirs).max() < tolerance


def test_what_cannot_be_is_said_in_one_sentence(tmp_path: Path) -> None:
    frames = frames_of(tmp_path, "RAS")
    field = dense(frames)
    for name, dialect, steps, known, message in [
        ("a.mat", None, [affine()], frames, "say which"),
        ("a.mat", "fsl", [affine()], Frames(), "name both"),
        ("a.mat", "fsl", [field], frames, "hold a matrix"),
        ("a.aff12.1D", None, [field, affine()], frames, "hold a matrix"),
        ("a.png", None, [affine()], frames, "ends in one of"),
        ("a.h5", "fsl", [affine()], frames, "ends with one of .mat"),
        ("a.lta", None, [np.eye(3)], frames, "3-D points"),
        ("a.tfm", "spm", [affine()], frames, "expected a dialect among"),
        ("a.nii.gz", None, [affine()], Frames(), "needs the fixed image"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_transform(tmp_path / name, steps, known, dialect=dialect)
        assert not (tmp_path / name).exists()
    for name, text in [
        ("b.lta", "type = 1\n"),
        ("b.aff12.1D", "1 2 3\n"),
        ("c.aff12.1D", "1 0 0 0 0 1 0 0 0 0 1 0\n" * 2),
        ("b.m3z", "x"),
        ("b.mgz", "x"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read_transform(tmp_path / name, frames)
    nib.save(nib.MGHImage(noise(4, 5, 6), np.eye(4)), tmp_path / "image.mgz")
    with pytest.raises(ValueError, match="no warp"):
        read_transform(tmp_path / "image.mgz")


def golden(name: str) -> Path:
    nitransforms = pytest.importorskip("nitransforms")
    return Path(nitransforms.__file__).parent / "tests" / "data" / name


def frames_in(lta: Path, folder: Path) -> Frames:
    """Images that lie where an .lta file says that its two do."""
    paths = []
    for part in lta.read_text().split("volume info\n")[1:3]:
        lines = [line.partition("#")[0].partition("=")[2].split() for line in part.splitlines()[2:8]]
        size, spacing, *axes, center = ([float(x) for x in line] for line in lines)
        linear = np.stack(axes, axis=1) * spacing
        place = nib.affines.from_matvec(linear, center - linear @ np.array(size) / 2)
        paths.append(save(folder / f"{len(paths)}.nii", np.zeros([int(n) for n in size], np.uint8), place))
    return Frames.of_files(fixed=paths[1], moving=paths[0])


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "oblique"])
def test_one_affine_in_the_golden_files_of_nitransforms(tmp_path: Path, orientation: str) -> None:
    expected = nib.affines.from_matvec(nib.eulerangles.euler2mat(x=0.9, y=0.001, z=0.001), [4.0, 2.0, -1.0])
    lta = golden(f"affine-{orientation}.fs.lta")
    frames = frames_in(lta, tmp_path)
    for file, matrix in (("itk.tfm", expected), ("fsl", expected), ("fs.lta", np.linalg.inv(expected))):
        found = read_transform(golden(f"affine-{orientation}.{file}"), frames)
        assert apart(found, [matrix], frames) < 1e-3, file
    afni = golden(f"affine-{orientation}.afni")
    linear = pytest.importorskip("nitransforms.io.afni").AFNILinearTransform.from_filename(afni)
    assert frames.fixed
    image = nib.load(frames.fixed.path)
    found = read_transform(afni, frames, dialect="afni")
    assert apart(found, [linear.to_ras(moving=image, reference=image)], frames) < 1e-3


@pytest.mark.parametrize("name", ["fsnative_to-bold", "fsnative_to-scanner", "scanner_to-bold", "scanner_to-fsnative"])
def test_what_freesurfer_converted_for_itk_and_fsl_is_one_transform(tmp_path: Path, name: str) -> None:
    lta = golden(f"regressions/from-{name}_mode-image.lta")
    frames = frames_in(lta, tmp_path)
    expected = read_transform(lta)
    for ending in ("tfm", "fsl"):
        assert apart(read_transform(lta.with_suffix(f".{ending}"), frames), expected, frames) < 1e-2
        write_transform(tmp_path / "a.lta", read_transform(lta.with_suffix(f".{ending}"), frames), frames)
        assert apart(read_transform(tmp_path / "a.lta"), expected, frames) < 1e-2
