"""FreeSurfer: affine .lta files, and the .mgz warps of mri_synthmorph and mri_warp_convert.

Convention: FreeSurfer places an image by its voxel axes and the world point `cras` of voxel size / 2. An .lta leads
from moving ("src") to fixed ("dst") points; a warp, on the fixed image's grid, from fixed to moving ones.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from ...fields import identity_grid
from ...results import replacing
from ..grids import Grid
from ..resampling import DisplacementField, Step
from .base import Dialect, Frames, mapped, numbers_in, one_matrix

_VOXELS, _WORLD = 0, 1  # what the coordinates of an .lta count
_INTENT = 3  # "warp" in the second byte of an .mgz file's version
_GEOMETRY_TAG, _META_TAG = 10, 13
_UNMEASURED = {1, 2, 11, 12, 20}  # tags that do not say how long they are
_FLOAT = 3
_RAS_DISPLACEMENT = 3  # the four formats: voxels or displacements in voxels, RAS mm or displacements in RAS mm

_PLACE = [("spacing", ">f4", 3), ("axes", ">f4", (3, 3)), ("center", ">f4", 3)]
_NUMBERS = [("version", ">i4"), ("size", ">i4", 4), ("type", ">i4"), ("dof", ">i4"), ("placed", ">u2")]
_HEADER = np.dtype([*_NUMBERS, *_PLACE, ("rest", "V194")])
_GEOMETRY = np.dtype([("valid", ">i4"), ("size", ">i4", 3), *_PLACE, ("name", "S512")])
_META = np.dtype([("format", ">i4"), ("spacing", ">i4"), ("exp_k", ">f4")])


def _place(grid: Grid) -> dict[str, np.ndarray]:
    """Voxel size, voxel axes (in rows) and world centre, as FreeSurfer has them."""
    middle = grid.affine @ [*(np.array(grid.size) / 2), 1]
    return {"spacing": grid.spacing, "axes": (grid.affine[:3, :3] / grid.spacing).T, "center": middle[:3]}


def _grid(size: np.ndarray, spacing: np.ndarray, axes: np.ndarray, center: np.ndarray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes, dtype=np.float64).T * spacing
    affine[:3, 3] = center - affine[:3, :3] @ (np.asarray(size) / 2)
    return Grid(affine, tuple(int(n) for n in size))


def _read(path: str, frames: Frames) -> list[Step]:
    if path.lower().endswith(".lta"):
        return [_read_lta(path)]
    if path.lower().endswith(".m3z"):
        raise ValueError(f"{path}: cannot be read; FreeSurfer's mri_warp_convert makes an .mgz warp of an .m3z file")
    return [_read_warp(path)]


def _read_lta(path: str) -> np.ndarray:
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    head, found, rest = text.partition("1 4 4\n")
    entries = dict(line.partition("#")[0].split("=", 1) for line in head.splitlines() if "=" in line.partition("#")[0])
    entries = {key.strip(): value.strip() for key, value in entries.items()}
    rows = numbers_in("\n".join(rest.splitlines()[:4]))
    kind = entries.get("type")
    if not found or rows is None or [len(row) for row in rows] != [4] * 4 or entries.get("nxforms", "1") != "1":
        raise ValueError(f"{path}: expected an .lta file with one matrix of 4 rows of 4 numbers")
    matrix = np.array(rows)
    if kind == str(_VOXELS):
        source, target = (_geometry_in(rest, name, path).affine for name in ("src", "dst"))
        matrix = target @ matrix @ np.linalg.inv(source)
    elif kind != str(_WORLD):
        raise ValueError(f"{path}: expected an .lta file of type 0 (voxels) or 1 (RAS), got {kind}")
    return np.linalg.inv(matrix)


def _geometry_in(text: str, name: str, path: str) -> Grid:
    lines = text.partition(f"{name} volume info")[2].splitlines()[1:9]
    entries = {line.partition("=")[0].strip(): line.partition("=")[2].partition("#")[0].strip() for line in lines}
    try:
        size, spacing, *axes, center = (
            np.array([float(x) for x in entries[key].split()])
            for key in ("volume", "voxelsize", "xras", "yras", "zras", "cras")
        )
        return _grid(size, spacing, np.stack(axes), center)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected the {name} volume's size, voxels, axes and centre") from error


def _read_warp(path: str) -> DisplacementField:
    try:
        raw = Path(path).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        header = np.frombuffer(raw, _HEADER, 1)[0]
        size = tuple(int(n) for n in header["size"])
        if header["version"] >> 8 & 0xFF != _INTENT or size[3] != 3 or header["type"] != _FLOAT:
            raise ValueError("it is an image, no warp")
        data = np.frombuffer(raw, ">f4", int(np.prod(size)), _HEADER.itemsize)
        kind, source = _tags(raw, _HEADER.itemsize + data.nbytes + 20)  # five numbers of the scanner stand between
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: expected a warp as mri_synthmorph writes it ({error})") from error
    vectors = np.moveaxis(data.reshape(size, order="F").astype(np.float64), -1, 0)
    grid = _grid(header["size"][:3], header["spacing"], header["axes"], header["center"])
    voxels = identity_grid(grid.size, dtype=torch.float64).numpy()
    here = voxels if kind < 2 else mapped(grid.affine, voxels)
    there = vectors + here if kind % 2 else vectors
    to_voxels = np.linalg.inv(grid.affine) @ (source.affine if kind < 2 else np.eye(4))
    return DisplacementField(torch.from_numpy(mapped(to_voxels, there) - voxels).float(), grid)


def _tags(raw: bytes, start: int) -> tuple[int, Grid]:
    """What the vectors of a warp are, and the moving image's grid."""
    kind, source = -1, None
    while start + 4 <= len(raw):
        tag = int.from_bytes(raw[start : start + 4], "big")
        start += 4
        if tag == _GEOMETRY_TAG:
            found = np.frombuffer(raw, _GEOMETRY, 2, start)[0]
            source = _grid(found["size"], found["spacing"], found["axes"], found["center"])
            start += 2 * _GEOMETRY.itemsize
            continue
        if tag == 0 or tag in _UNMEASURED:
            break
        length = int.from_bytes(raw[start : start + 8], "big")
        start += 8
        if tag == _META_TAG:
            kind = int(np.frombuffer(raw, _META, 1, start)[0]["format"])
        start += length
    if source is None or kind not in range(4):
        raise ValueError("it does not say what its vectors mean")
    return kind, source


def _write(path: Path, steps: list[Step], frames: Frames) -> None:
    if str(path).lower().endswith(".lta"):
        _write_lta(path, one_matrix(steps, path), *frames.both(path))
    else:
        _, moving = frames.both(path)
        _write_warp(path, frames.whole(path, steps), moving)


def _write_lta(path: Path, matrix: np.ndarray, fixed: Grid, moving: Grid) -> None:
    lines = [f"type      = {_WORLD} # LINEAR_RAS_TO_RAS", "nxforms   = 1", "mean      = 0.0000 0.0000 0.0000"]
    lines += ["sigma     = 1.0000", "1 4 4", *(_spaced(row) for row in np.linalg.inv(matrix))]
    for name, grid in (("src", moving), ("dst", fixed)):
        place = _place(grid)
        lines += [f"{name} volume info", "valid = 1  # volume info valid", "filename = none"]
        lines += ["volume = " + " ".join(map(str, grid.size)), f"voxelsize = {_spaced(place['spacing'])}"]
        lines += [f"{axis}ras   = {_spaced(row)}" for axis, row in zip("xyz", place["axes"], strict=True)]
        lines += [f"cras   = {_spaced(place['center'])}"]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _spaced(numbers: np.ndarray) -> str:
    return " ".join(f"{x:.15e}" for x in numbers)


def _write_warp(path: Path, field: DisplacementField, moving: Grid) -> None:
    """Displacements in RAS mm."""
    grid = field.grid
    ras = np.einsum("ij,j...->...i", grid.affine[:3, :3], field.ddf.numpy().astype(np.float64)).astype(">f4")
    header = np.zeros(1, _HEADER)
    header["version"], header["size"], header["type"] = _INTENT << 8 | 1, [*grid.size, 3], _FLOAT
    header["dof"] = header["placed"] = 1
    geometry = np.zeros(2, _GEOMETRY)
    for record, place in ((header[0], grid), (geometry[0], moving), (geometry[1], grid)):
        for key, value in _place(place).items():
            record[key] = value
    for record, place in zip(geometry, (moving, grid), strict=True):
        record["valid"], record["size"] = 1, place.size
    extent = np.array([0, 0, 0, 0, (grid.spacing * grid.size).max()], ">f4")
    meta = np.array([(_RAS_DISPLACEMENT, 1, 0.0)], _META)
    tags = [_GEOMETRY_TAG.to_bytes(4, "big"), geometry.tobytes()]
    tags += [_META_TAG.to_bytes(4, "big"), _META.itemsize.to_bytes(8, "big"), meta.tobytes()]
    content = b"".join([header.tobytes(), ras.tobytes(order="F"), extent.tobytes(), *tags])
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 6) if str(path).lower().endswith("z") else content)


_ENDINGS = (".lta", ".mgz", ".mgh", ".m3z")
FREESURFER = Dialect(
    "freesurfer", (".lta",), (".mgz", ".mgh"), lambda path: path.lower().endswith(_ENDINGS), _read, _write
)
