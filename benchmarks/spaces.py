"""Do ITK, ANTs and nitransforms apply our transforms as we do, whatever a file's header says?

    python -m benchmarks.spaces [--others PYTHON] [--folder FOLDER]

For each kind of header a pair with labels is written, deformed by a random diffeomorphism after an affine map, and
saved as `morphzoo register` saves it. Other tools then apply the written transforms to the original files. `--others`
is the Python of an environment with `antspyx` and `nitransforms`; without it only ITK is compared. Prints a table.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from monai.data import decollate_batch, list_data_collate

from benchmarks.spaces_headers import KINDS, write_kind
from custom_components.fields import integrate_velocity
from custom_components.space import load_grid, read_transform, transform_points_world, write_affine_transform
from custom_components.space.readers import import_itk
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.publish import Report
from custom_components.transforms.registered import RegisteredPair
from custom_components.transforms.save import PairFiles

NUM_POINTS = 500
WRITTEN = ("warped", "warped_fixed", "warped_label", "forward", "inverse", "affine", "composite")
COLUMNS = ("image", "inverse", "labels", "points", "way back")

Files = dict[str, str]


def main(others: str = "", folder: str = "") -> None:
    """Print one line of differences for each kind of header and tool."""
    import_itk("this comparison").ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(folder or scratch)
        print("| header | tool | " + " | ".join(COLUMNS) + " |\n|---|---|" + "---|" * len(COLUMNS))
        pairs = {kind: register(kind, root / kind.replace(" ", "_").replace("/", "_")) for kind in KINDS}
        found = with_others(others, pairs) if others else {kind: {} for kind in KINDS}
        for kind, files in pairs.items():
            print_rows(kind, {"ITK": with_itk(files)} | found[kind])


def print_rows(kind: str, tools: Mapping[str, Mapping[str, str]]) -> None:
    for tool, found in tools.items():
        print(f"| {kind} | {tool} | " + " | ".join(found.get(column, "-") for column in COLUMNS) + " |", flush=True)


def register(kind: str, folder: Path) -> Files:
    """Write a pair of this kind and its transforms; paths by role, and `points`, voxels of the fixed image, LPS."""
    folder.mkdir(parents=True, exist_ok=True)
    item = {
        key: path
        for role, seed in (("fixed", 0), ("moving", 1))
        for key, path in write_kind(kind, folder, role, seed).items()
    }
    fixed = load_grid(item["fixed"])
    d = len(fixed.affine) - 1
    unit = float(fixed.grid.spacing.mean())  # the tests' lengths in voxels: those of some files are micrometres
    matrix = np.eye(d + 1)
    matrix[:d] += np.random.default_rng(2).uniform(-0.04, 0.04, (d, d + 1))
    middle = fixed.grid.center
    matrix[:d, d] = middle + unit * matrix[:d, d] * 20 - matrix[:d, :d] @ middle
    write_affine_transform(folder / "pre.tfm", matrix)
    loaded = LoadPaird(None, str(folder / "pre.tfm"))(item)
    size = tuple(loaded["fixed"].shape[1:])
    coarse = torch.randn(1, d, *[5] * d, generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if d == 2 else "trilinear"
    velocity = 1.2 * torch.nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)
    batch = list_data_collate([loaded])
    batch["pred"] = {"ddf": integrate_velocity(velocity), "inverse_ddf": integrate_velocity(-velocity)}
    pair = RegisteredPair.of(decollate_batch(batch)[0])
    files = dict(item)
    for name, file in PairFiles(WRITTEN)(pair, Report()).files.items():
        file.write(folder / file.name)
        files[name] = str(folder / file.name)
    grid = fixed.grid_in_file if fixed.is_slice or d == 3 else fixed.grid
    index = np.random.default_rng(3).integers(0, grid.size, (NUM_POINTS, len(grid.size)))
    lps = (index @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]) * np.array([-1, -1, 1])[: len(grid.size)]
    np.savetxt(folder / "points.txt", lps)
    return files | {"points": str(folder / "points.txt"), "unit": str(unit)}


def with_itk(files: Files) -> dict[str, str]:
    itk = import_itk("this comparison")

    def moved(image: str, like: str, transform: str, nearest: bool = False) -> np.ndarray:
        kind = itk.Image[itk.F, load_dims(like)]
        image, like = (read_with_itk(itk, path, kind) for path in (image, like))
        filter_ = itk.ResampleImageFilter[kind, kind].New(Input=image, ReferenceImage=like, UseReferenceImage=True)
        filter_.SetTransform(itk.transformread(transform)[0])
        if nearest:
            filter_.SetInterpolator(itk.NearestNeighborInterpolateImageFunction[kind, itk.D].New())
        filter_.Update()
        return itk.array_from_image(filter_.GetOutput()).T

    try:
        images = {
            "image": moved(files["moving"], files["fixed"], files["transform"]),
            "inverse": moved(files["fixed"], files["moving"], files["inverse_transform"]),
            "labels": moved(files["label_moving"], files["fixed"], files["transform"], nearest=True),
        }
    except RuntimeError:
        images = {}  # a format that itk's Python package cannot read
    transforms = [itk.transformread(files[name])[0] for name in ("transform", "inverse_transform")]
    points = [np.array([list(t.TransformPoint(p.tolist())) for p in np.loadtxt(files["points"])]) for t in transforms]
    return differences(files, images, points)


def load_dims(path: str) -> int:
    volume = load_grid(path)
    return 3 if volume.is_slice else len(volume.affine) - 1


def read_with_itk(itk: object, path: str, kind: object) -> object:
    if Path(path).is_dir():
        return itk.imread(path, itk.F)  # type: ignore[attr-defined]
    reader = itk.ImageFileReader[kind].New(FileName=path)  # type: ignore[attr-defined]
    reader.Update()
    return reader.GetOutput()


def with_others(python: str, pairs: Mapping[str, Files]) -> dict[str, dict[str, dict[str, str]]]:
    """What ANTs and nitransforms say of each kind, from one process of another environment."""
    program = str(Path(__file__).with_name("spaces_others.py"))
    given = [files | {"dims": str(load_dims(files["fixed"]))} for files in pairs.values()]
    done = subprocess.run([python, program], input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True)
    found = {}
    for (kind, files), tools in zip(pairs.items(), json.loads(done.stdout.strip().splitlines()[-1]), strict=True):
        found[kind] = {tool: _loaded(files, tool, names) for tool, names in tools.items()}
    return found


def _loaded(files: Files, tool: str, names: list[str]) -> dict[str, str]:
    folder = Path(files["points"]).parent
    arrays = {name: np.load(folder / f"{tool}_{name}.npy") for name in names}
    points = [arrays.pop(name) for name in ("points", "back") if name in arrays]
    return differences(files, arrays, points)


def differences(files: Files, images: Mapping[str, np.ndarray], points: list[np.ndarray]) -> dict[str, str]:
    """Largest differences: images over their range, labels in voxels, points in voxels of the fixed image."""
    found = {}
    for name, ours in (("image", "warped"), ("inverse", "warped_fixed"), ("labels", "warped_label")):
        if name not in images:
            continue
        expected = nib.load(files[ours]).get_fdata()
        theirs = images[name].reshape(expected.shape)
        if name == "labels":
            found[name] = f"{int((theirs != expected).sum())} of {expected.size}"
        else:
            found[name] = f"{np.abs(theirs - expected).max() / np.ptp(expected):.0e}"
    lps = np.loadtxt(files["points"])
    flip = np.array([-1, -1, 1])[: lps.shape[1]]
    for name, transform, theirs in zip(
        ("points", "way back"), ("transform", "inverse_transform"), points, strict=False
    ):
        ours = transform_points_world(lps * flip, read_transform(files[transform])) * flip
        found[name] = f"{np.abs(theirs - ours).max() / float(files['unit']):.0e}"
    return found


if __name__ == "__main__":
    fire.Fire(main)
