"""Images and label maps on other grids, as ITK resamples them; which interpolation a name and a file mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from space.cases import OBLIQUE, noise, save

from custom_components.space import Grid, fixed_size_grid
from custom_components.space.components import load_components
from custom_components.space.resampling import DisplacementField
from custom_components.space.warping import interpolation_named, looks_like_labels, warp_components, warp_to_grid
from custom_components.space.writers import place_itk_image


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (["linear", "Linear", "sitkLinear", "trilinear", "bilinear", "itkLinearInterpolateImageFunction"], "linear"),
        (["nearest", "nearestNeighbor", "NearestNeighbor", "sitkNearestNeighbor", "nearestneighbour", "NN"], "nearest"),
        (["label", "genericLabel", "GenericLabel[Linear]", "multiLabel", "MultiLabel[0.8,4.0]"], "label"),
        (["cubic", "bSpline", "BSpline[3]", "sitkBSpline", "tricubic"], "cubic"),
        (["auto", "AUTO"], "auto"),
    ],
)
def test_names_of_other_tools_are_understood(names: list[str], ours: str) -> None:
    assert [interpolation_named(name) for name in names] == [ours] * len(names)


@pytest.mark.parametrize("name", ["lanczosWindowedSinc", "BSpline[5]", "nearist", "", "gaussian", "0", "True"])
def test_other_names_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(ValueError, match="expected an interpolation among auto, linear, nearest, label and cubic"):
        interpolation_named(name)


def blocks(size: tuple[int, ...], ids: int, block: int = 4) -> np.ndarray:
    """A map of blocks with random ids from 1 on, and a margin of 0."""
    coarse = np.random.default_rng(0).integers(1, ids + 1, [-(-n // block) for n in size])
    for axis in range(len(size)):
        coarse = coarse.repeat(block, axis).take(range(size[axis]), axis)
    coarse[:3] = 0
    return coarse


def test_labels_are_told_from_images_by_their_neighbours_not_by_their_number() -> None:
    atlas = blocks((24, 24, 24), 400)[None]
    for labels in (atlas.astype("i2"), atlas.astype("f4"), atlas * (1 - 1e-6), atlas > 200, blocks((24, 24), 90)[None]):
        assert looks_like_labels(labels)
    landmarks = np.zeros((1, 20, 20, 20), "u1")
    landmarks[0, ::9, ::9, ::9] = np.arange(1, 28).reshape(3, 3, 3)
    assert looks_like_labels(landmarks)
    smooth = 40 * (1 + np.sin(np.indices((24, 24, 24)) / 3).sum(0) / 3)[None]
    for image in (smooth.astype("u1"), smooth, noise(1, 9, 9, 9), np.where(atlas > 200, -1024, 40), atlas - 1000):
        assert not looks_like_labels(image)
    assert not looks_like_labels(np.full((1, 4, 4, 4), np.nan))


def itk_image(itk: Any, array: np.ndarray, affine: np.ndarray) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    place_itk_image(itk, image, affine)
    return image


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_itk_resamples_alike_up_to_the_border_and_beyond(mode: str, shift: float) -> None:
    """Half a voxel's shift puts every point between two voxels; the target is larger than the image."""
    itk = pytest.importorskip("itk")
    grid = Grid(OBLIQUE if mode != "nearest" else np.diag([-1.5, -2.0, 2.5, 1]), (9, 8, 7))
    larger = np.eye(4)
    larger[:3, 3] = shift - 3
    target = Grid(grid.affine @ larger, (16, 15, 13))
    values = (100 * noise(*grid.size)).round().astype("f4") + 1
    ours = warp_to_grid(torch.from_numpy(values)[None], grid.affine, target, [], mode=mode, fill=-7.0)[0]
    image, reference = (itk_image(itk, v, g.affine) for v, g in ((values, grid), (np.zeros(target.size, "f4"), target)))
    kinds = {
        "linear": itk.LinearInterpolateImageFunction[type(image), itk.D],
        "nearest": itk.NearestNeighborInterpolateImageFunction[type(image), itk.D],
        "cubic": itk.BSplineInterpolateImageFunction[type(image), itk.D, itk.F],
    }
    theirs = itk.array_from_image(
        itk.resample_image_filter(
            image,
            use_reference_image=True,
            reference_image=reference,
            interpolator=kinds[mode].New(),
            default_pixel_value=-7,
        )
    ).T
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert (ours == -7).any()


@pytest.mark.parametrize("kind", ["series", "vectors", "planes", "complex", "rgb", "rgba"])
def test_every_component_is_brought_along_as_if_alone(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    if kind.startswith("rgb"):
        array = rng.integers(0, 256, (8, 9, 7, len(kind)), dtype="u1").view([(c, "u1") for c in kind.upper()])[..., 0]
    elif kind == "complex":
        array = (rng.random((8, 9, 7)) + 1j * rng.random((8, 9, 7))).astype("c8")
    else:
        shape = {"series": (8, 9, 7, 3), "vectors": (8, 9, 7, 1, 3), "planes": (8, 9, 1, 4)}[kind]
        array = rng.random(shape).astype("f4")
    image = load_components(save(tmp_path / "a.nii.gz", array, OBLIQUE))
    assert np.array_equal(image.stored(image.data).reshape(array.shape), array)
    grid = fixed_size_grid(1.7, (6, 5, 4)[: len(image.grid.size)], image.grid.center)
    moved = warp_components(image, grid, [])
    for one, component in zip(moved, image.data, strict=True):
        alone = torch.from_numpy(np.ascontiguousarray(component)).float()[None]
        np.testing.assert_allclose(one, warp_to_grid(alone, image.grid.affine, grid, [])[0], atol=1e-6)
    assert image.stored(moved).shape == (*grid.size, *array.shape[3:])
    assert image.stored(moved).dtype == array.dtype


def test_damaged_fields_and_images_of_other_dimensions_are_refused_by_name(tmp_path: Path) -> None:
    image = load_components(save(tmp_path / "a.nii.gz", noise(5, 6, 7)))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected an image of 2 dimensions, as the reference, got 3"):
        warp_components(image, fixed_size_grid(1.0, (4, 4)), [])
    with pytest.raises(ValueError, match="expected a transform of 3-D points, got one of 2-D points"):
        warp_components(image, image.grid, [np.eye(3)])
    with pytest.raises(ValueError, match="expected a label map for the interpolation 'label'"):
        warp_components(image, image.grid, [], mode="label")
    labels = load_components(save(tmp_path / "b.nii.gz", blocks((5, 6, 7), 3).astype("u1")))
    with pytest.raises(ValueError, match=r"fill value of the file's type uint8, got -1"):
        warp_components(labels, labels.grid, [], mode="nearest", fill=-1)


def field_on(grid: Grid, mm: float) -> DisplacementField:
    """A smooth field of a cropped image: it moves up to `mm` on the grid's faces, too, and does not fold."""
    d = len(grid.size)
    index = torch.stack(torch.meshgrid(*[torch.linspace(0, 3, n) for n in grid.size], indexing="ij"))
    waves = torch.stack([torch.sin(index.roll(i, 0)[0] + i) * torch.cos(0.7 * index[-1]) for i in range(d)])
    return DisplacementField(waves * (mm / torch.as_tensor(grid.spacing).float().view(-1, *[1] * d)), grid)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("mm", [0.0, 1.0, 7.0])
def test_a_written_field_keeps_its_values_and_fades_without_folding(d: int, mm: float) -> None:
    from custom_components.fields import jacobian_determinant

    affine = OBLIQUE if d == 3 else np.array([[1.4, 0.3, 5], [-0.3, 1.4, 2], [0, 0, 1.0]])
    field = field_on(Grid(affine, (16, 14, 12)[:d]), mm)
    larger = field.fading()
    assert larger.grid.size == field.grid.size if mm == 0 else larger.grid.size > field.grid.size
    start = np.linalg.solve(larger.grid.affine, field.grid.affine)[:-1, -1].round().astype(int)
    inner = tuple(slice(s, s + n) for s, n in zip(start, field.grid.size, strict=True))
    assert torch.equal(larger.ddf[(slice(None), *inner)], field.ddf)
    assert larger.fading().grid.size == larger.grid.size
    for axis in range(1, d + 1):
        for end in (0, -1):
            assert larger.ddf.select(axis, end).abs().max() == 0
    if mm < 7:
        assert jacobian_determinant(field.ddf[None]).min() > 0
        assert jacobian_determinant(larger.ddf[None]).min() > 0
