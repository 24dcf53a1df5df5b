"""Files of every kind of header: the same two objects, written as cameras, scanners and tools write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from custom_components.space.readers import import_itk

SIZE = (26, 24, 22)
ORIGIN = (-40.0, -35.0, -30.0)


def straight(codes: str = "RAS", spacing: tuple[float, ...] = (3.0, 3.0, 3.0)) -> np.ndarray:
    """An affine with these axis codes."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (1, 1, 1))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    origin = np.array(ORIGIN) * np.abs(spacing).mean() / 3
    affine[:3, 3] = origin - np.minimum(affine[:3, :3] @ (np.array(SIZE) - 1), 0)
    return affine


def oblique(spacing: tuple[float, ...] = (3.0, 3.0, 3.0), degrees: float = 20.0) -> np.ndarray:
    """An affine turned about two axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = straight("RAS", spacing)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def nifti(
    sform: np.ndarray | None,
    sform_code: int,
    qform: np.ndarray | None,
    qform_code: int,
    *,
    units: int = 2,
    pixdim: tuple[float, ...] | None = None,
    ending: str = ".nii.gz",
) -> Callable[[Path, np.ndarray], Path]:
    """A writer of NIfTI files with this header."""

    def write(path: Path, voxels: np.ndarray) -> Path:
        image = nib.Nifti1Pair(voxels, np.eye(4)) if ending == ".img" else nib.Nifti1Image(voxels, np.eye(4))
        image.set_qform(qform, qform_code)
        image.set_sform(sform, sform_code)
        image.header["xyzt_units"] = units
        if sform is not None and qform is None:
            image.header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
        if pixdim is not None:
            image.header["pixdim"][1:4] = pixdim
        path = path.with_name(path.name + ending)
        nib.save(image, path)
        return path

    return write


def with_itk(ending: str, affine: np.ndarray) -> Callable[[Path, np.ndarray], Path]:
    """A writer of another format, by ITK."""

    def write(path: Path, voxels: np.ndarray) -> Path:
        itk = import_itk("this comparison")
        source = nifti(affine, 1, affine, 1)(path, voxels)
        path = path.with_name(path.name + ending)
        itk.imwrite(itk.imread(str(source)), str(path))
        return path

    return write


def sliced(axis: int, affine: np.ndarray) -> Callable[[Path, np.ndarray], Path]:
    """A writer of the middle slice along an axis."""

    def write(path: Path, voxels: np.ndarray) -> Path:
        index = SIZE[axis] // 2
        place = affine.copy()
        place[:3, 3] += index * affine[:3, axis]
        return nifti(place, 1, place, 1)(path, voxels.take([index], axis))

    return write


def analyze(path: Path, voxels: np.ndarray) -> Path:
    path = path.with_name(path.name + ".img")
    nib.save(nib.AnalyzeImage(voxels, np.diag([3.0, 3, 3, 1])), path)
    return path


def mgh(path: Path, voxels: np.ndarray) -> Path:
    path = path.with_name(path.name + ".mgz")
    nib.save(nib.MGHImage(voxels, oblique()), path)
    return path


def scaled(path: Path, voxels: np.ndarray) -> Path:
    """Half the values, with a scale factor of 2."""
    image = nib.Nifti1Image(voxels * 2, oblique())
    image.header.set_slope_inter(2.0, 0.0)
    path = path.with_name(path.name + ".nii.gz")
    nib.save(image, path)
    return path


def sheared() -> np.ndarray:
    affine = straight()
    affine[0, 1] += 0.4
    return affine


KINDS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "sform alone, RAS": nifti(straight(), 2, None, 0),
    "LPS axes, voxels of 2 x 3 x 4 mm": nifti(*[straight("LPS", (2.0, 3, 4)), 1] * 2),
    "axes P, I, L": nifti(*[straight("PIL"), 1] * 2),
    "left-handed, oblique": nifti(*[oblique((-3.0, 3, 3)), 1] * 2),
    "oblique, voxels of 2 x 3 x 4 mm": nifti(*[oblique((2.0, 3, 4)), 1] * 2),
    "qform alone": nifti(None, 0, oblique(), 1),
    "qform and sform disagree, sform code 1": nifti(straight(), 1, oblique(), 1),
    "qform and sform disagree, sform code 2": nifti(straight(), 2, oblique(), 1),
    "qform and sform disagree, sform code 4": nifti(straight(), 4, oblique(), 2),
    "sheared sform with a qform": nifti(sheared(), 1, oblique(), 1),
    "neither qform nor sform": nifti(None, 0, None, 0, pixdim=(3.0, 3, 3)),
    "microns": nifti(*[oblique((30.0, 30, 30)), 1] * 2, units=3),
    "metres": nifti(*[oblique((0.003, 0.003, 0.003)), 1] * 2, units=1),
    "sform and pixdim of other voxel sizes": nifti(straight(), 1, None, 0, pixdim=(2.5, 2.5, 2.5)),
    "voxels of 0.9 micrometres": nifti(*[straight("RAS", (0.0009, 0.0009, 0.0009)), 1] * 2),
    "scale factor 2": scaled,
    "one sagittal slice": sliced(0, straight()),
    "one coronal slice, oblique": sliced(1, oblique()),
    "one axial slice": sliced(2, straight("LPS")),
    "NIfTI pair (.img, .hdr)": nifti(*[oblique(), 1] * 2, ending=".img"),
    "Analyze": analyze,
    "NRRD": with_itk(".nrrd", oblique()),
    "MetaImage": with_itk(".mha", oblique()),
    "VTK": with_itk(".vtk", straight()),
    "MGH": mgh,
}


def objects(seed: int) -> np.ndarray:
    """A smooth object that ends before the borders, 0 to 1000, int16."""
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij"), -1)
    x, y, z = np.moveaxis(index + 0.04 * seed, -1, 0)
    envelope = np.maximum(np.exp(-4 * (x**2 + 1.3 * y**2 + z**2)) - 0.12, 0)
    return (500 * envelope * (2 + np.sin(5 * x) * np.cos(4 * y + seed) + 0.5 * np.sin(6 * z))).astype(np.int16)


def write_kind(kind: str, folder: Path, role: str, seed: int) -> dict[str, str]:
    """Write the image and the labels of one role; paths by key."""
    image = objects(seed)
    labels = np.digitize(image, (100, 350, 600)).astype(np.uint8 if kind != "scale factor 2" else np.int16)
    return {
        role: str(KINDS[kind](folder / role, image)),
        f"label_{role}": str(KINDS[kind](folder / f"label_{role}", labels)),
    }
