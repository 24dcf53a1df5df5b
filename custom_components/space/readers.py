"""Read the voxels and the frame of image files: NIfTI and MGH with nibabel, DICOM folders and all else with `itk`.

Convention: an array has the file's spatial axes first, then frames and components, in native byte order.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..memory import check_array
from .frames import Frame, nifti_frame
from .grids import flip_lps

Itk = Any  # the module itk and its objects, which have no types

_NIBABEL_ENDINGS = (".nii", ".nii.gz", ".mgz", ".mgh")
_DAMAGED = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError)
_FRAMELESS = ("TIFFImageIO", "PNGImageIO", "JPEGImageIO", "BMPImageIO")  # formats that say nothing about the world

_GEOMETRY = ("0020|0037", "0020|0032", "0028|0030", "0028|0010", "0028|0011")  # directions, origin, pixels, size
_SLICES_TURNED = 1e-3  # of a direction's cosines
_SLICES_APART = 0.1  # of the distance of slices; scanners round positions


def existing(path: str | os.PathLike[str]) -> str:
    """The path of a file or, for DICOM, a folder, as a string.

    Raises:
        FileNotFoundError: if there is neither.
    """
    path = str(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such image file")
    return path


def is_nibabel(path: str) -> bool:
    """Whether nibabel reads a file of this name; `itk` reads the others."""
    return path.lower().endswith(_NIBABEL_ENDINGS) and not os.path.isdir(path)


def open_nibabel(path: str) -> Any:
    """The image with its header; the voxels are not read yet.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return nib.load(path)
    except (*_DAMAGED, ValueError) as error:
        raise _damaged(path, error) from error


def nibabel_frame(image: Any, path: str) -> Frame:
    """The frame of an image that nibabel opened; that of a NIfTI file as `nifti_frame`. Errors as there."""
    try:
        if isinstance(image, nib.Nifti1Pair):
            return nifti_frame(image.header, path)
        return Frame(np.asarray(image.affine, dtype=np.float64))
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def read_nibabel(path: str) -> tuple[np.ndarray, Frame]:
    """The scaled voxels of a file, all axes, any type, and its frame. Errors as `open_nibabel` and `nifti_frame`."""
    image = open_nibabel(path)
    check_array(image.shape, max(image.get_data_dtype().itemsize, 4), path)
    try:
        array = np.asarray(image.dataobj)
    except (*_DAMAGED, ValueError) as error:
        raise _damaged(path, error) from error
    # Byte order matters to torch.
    return array.astype(array.dtype.newbyteorder("="), copy=False), nibabel_frame(image, path)


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be read as an image, the file is truncated or damaged ({error})")


def image_size(path: str) -> list[int]:
    """Voxels along each axis of a file, by its header alone. Errors as the readers, as far as the header tells."""
    if is_nibabel(path):
        return list(open_nibabel(path).shape)
    if os.path.isdir(path):
        return [*image_size(dicom_slices(path)[0])[:2], len(dicom_slices(path))]
    reader = _itk_reader(path)
    return [reader.GetDimensions(i) for i in range(reader.GetNumberOfDimensions())]


def read_itk_components(path: str) -> tuple[np.ndarray, Frame, int]:
    """The voxels of a file of a format that `itk` reads, or of a folder's DICOM series.

    Returns:
        The array, the frame of its first three axes, and the number of axes without the components.
    Raises:
        ValueError: if `itk` cannot read it, or a folder holds no series, or several.
        ImportError: if `itk` is not installed.
    """
    itk = import_itk(f"reading {path}")
    slices = dicom_slices(path) if os.path.isdir(path) else None
    reader = _itk_reader(path if slices is None else slices[0])
    size = [reader.GetDimensions(i) for i in range(reader.GetNumberOfDimensions())]
    check_array([*size, reader.GetNumberOfComponents()], max(reader.GetComponentSize(), 4), path)
    several = reader.GetNumberOfComponents() > 1
    # Of what itk's Python package has no type for, it can still read the numbers.
    pixel = itk.VariableLengthVector[itk.F] if several else itk.D if reader.GetComponentSize() > 2 else itk.F
    try:
        image = itk.imread(path if slices is None else slices, pixel, fallback_only=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read as an image ({_reason(error)})") from error
    array, frame, d = itk_voxels(image)
    return array, Frame(frame.affine, _says_frame(reader, image)), d


def itk_voxels(image: Any) -> tuple[np.ndarray, Frame, int]:
    """The voxels of an image of ITK's, the frame of its first three axes, and the number of axes without the
    components."""
    itk = import_itk("an image of ITK")
    d = image.GetImageDimension()
    array = itk.array_from_image(image)
    array = array.T if array.ndim == d else np.moveaxis(array.T, 0, -1)
    placed = min(d, 3)
    lps = np.eye(4)
    scaled = itk.array_from_matrix(image.GetDirection()) * np.array(itk.spacing(image))
    lps[:placed, :placed] = scaled[:placed, :placed]
    lps[:placed, 3] = np.array(itk.origin(image))[:placed]
    return array, Frame(flip_lps(3) @ lps), d


def _itk_reader(path: str) -> Itk:
    """ITK's reader of a file that has read its header."""
    itk = import_itk(f"reading {path}")
    reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise ValueError(f"{path}: cannot be read as an image (itk knows no such format)")
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be read as an image ({_reason(error)})") from error
    return reader


def _says_frame(reader: Itk, image: Itk) -> bool:
    """Whether a file says where it lies; of Analyze files ITK takes the voxel size alone."""
    kind, said = reader.GetNameOfClass(), dict(image)
    if kind == "NiftiImageIO":
        return any(said.get(code) != "0" for code in ("qform_code", "sform_code"))
    return kind not in _FRAMELESS


def dicom_slices(folder: str) -> list[str]:
    """The files of the DICOM series in a folder, from the first slice to the last.

    Raises:
        ValueError: if there is no series, or more than one.
    """
    itk = import_itk(f"reading {folder}")
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.GlobalWarningDisplayOff()  # of a folder without DICOM the error tells
    names.SetDirectory(folder)
    series = {uid: list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()}
    if not series:
        raise ValueError(f"{folder}: expected an image file or a folder with a DICOM series, found no DICOM file there")
    if len(series) > 1:
        found = ", ".join(f"{Path(files[0]).name} and {len(files) - 1} more" for files in series.values())
        raise ValueError(
            f"{folder}: expected a folder with one DICOM series, found {len(series)} ({found}); "
            "put the files of the wanted one into a folder of their own"
        )
    files = next(iter(series.values()))
    _refuse_mixed_slices(folder, files)
    return files


def _refuse_mixed_slices(folder: str, files: list[str]) -> None:
    """Raises ValueError: if the slices of a series differ in direction or size, or do not follow at equal distances."""
    if len(files) < 2:
        return
    texts = [dicom_texts(file, *_GEOMETRY) for file in files]
    if any(not all(one[:2]) for one in texts):  # several frames in a file, or no image of a patient
        return
    directions = np.array([[float(x) for x in one[0].split("\\")] for one in texts])
    origins = np.array([[float(x) for x in one[1].split("\\")] for one in texts])
    along = origins @ np.cross(directions[0, :3], directions[0, 3:])
    steps = np.abs(np.diff(along))
    turned = (np.abs(directions - directions[0]) > _SLICES_TURNED).any(1)
    if turned.any() or len({tuple(one[2:]) for one in texts}) > 1:
        raise ValueError(f"{folder}: the DICOM series mixes slices of different directions or sizes")
    if np.abs(steps - np.median(steps)).max() > _SLICES_APART * np.median(steps):
        found = f"{steps.min():.3g} to {steps.max():.3g} mm"
        raise ValueError(f"{folder}: expected slices at equal distances, found {found}: slices are missing, or mixed")


def dicom_texts(path: str, *tags: str) -> list[str]:
    """What a DICOM file says under tags such as "0020|0032"; empty where it says nothing."""
    reader = _itk_reader(path)  # which owns what it says
    said = reader.GetMetaDataDictionary()
    return [str(said[tag]).strip() if said.HasKey(tag) else "" for tag in tags]


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def import_itk(purpose: str) -> Itk:
    """The `itk` module.

    Raises:
        ImportError: if it is not installed, naming what it is needed for.
    """
    try:
        import itk
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package itk: pip install 'morphzoo[demo]'") from error
    return itk
