"""Make the demonstration pairs of prostates of the DeepReg project (Apache-2.0) into a data set with a common world.

    python -m data_lists.prostate PROSTATE/datalist.json -o PAIRS

The headers of these MR and ultrasound images place them nowhere: origin and voxel size are the same for both grids, and
not those of a scanner. Three facts give a world. The glands of the pairs have as many voxels in both images (on average
within a few per cent), so both have one voxel size; glands lie about the middle of both. So each image gets
isotropic voxels and its centre at the world's origin. The size in mm is not known: that of `--spacing` gives glands of
common volumes. All figures in mm depend on it. The second axis runs from left to right, or back: mirrored along it
images correlate by .7 and .8 within the gland; the others are called anterior and superior.

Written are `images/`, and label maps: `glands/` (1), `landmarks/` (1, 2), and `labels/` for training, of which gland
and landmarks overlap: 1 is the gland, 2 and 3 the first landmark outside and inside of it, 4 and 5 the second one.
`datalist.json` has `training` and `validation`, with those labels, and `validation_pairs` and `test` with glands.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SPACING_MM = 1.6


def build(data_list: str, output: str, spacing: float = SPACING_MM) -> str:
    """Write the data set; returns the path of its list.

    Args:
        data_list: of the original files: pairs with `fixed_image`, `fixed_label`, `fixed_landmarks` and the same of
            `moving`, in the sections training, validation and test.
        output: folder, made if needed.
        spacing: edge of a voxel, mm.
    Raises:
        FileNotFoundError, KeyError: if the list or what it names is not there.
    """
    source, target = Path(data_list).parent, Path(output)
    lists = json.loads(Path(data_list).read_text(encoding="utf-8"))
    sections: dict[str, list[dict[str, str]]] = {
        name: [] for name in ("training", "validation", "validation_pairs", "test")
    }
    for name in ("training", "validation", "test"):
        for pair in lists[name]:
            trained, measured = _written(pair, source, target, spacing)
            if name != "test":
                sections[name].append(trained)
            if name != "training":
                sections["test" if name == "test" else "validation_pairs"].append(measured)
    path = target / "datalist.json"
    path.write_text(json.dumps({"name": "prostates", **sections}, indent=1), encoding="utf-8")
    return str(path)


def _written(pair: dict[str, str], source: Path, target: Path, spacing: float) -> tuple[dict[str, str], dict[str, str]]:
    """The pair's item for training, and that for measuring."""
    trained, measured = {"id": pair["subject"]}, {"id": pair["subject"]}
    for side in ("moving", "fixed"):
        image, gland = (_voxels(source / pair[f"{side}_{kind}"]) for kind in ("image", "label"))
        gland = (gland > 0).astype(np.uint8)
        volumes, labels = {"images": image, "glands": gland}, gland.copy()
        if pair.get(f"{side}_landmarks"):
            landmarks = _voxels(source / pair[f"{side}_landmarks"]).astype(np.uint8)
            volumes["landmarks"] = landmarks
            labels = np.where(landmarks > 0, 2 * landmarks + gland, gland).astype(np.uint8)
        volumes["labels"] = labels
        for kind, values in volumes.items():
            name = f"{kind}/{pair['subject']}_{side}.nii.gz"
            (target / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, _centred(values.shape, spacing)), target / name)
        trained |= {side: f"images/{pair['subject']}_{side}.nii.gz"}
        measured |= {side: trained[side], f"label_{side}": f"glands/{pair['subject']}_{side}.nii.gz"}
        trained |= {f"label_{side}": f"labels/{pair['subject']}_{side}.nii.gz"}
        if "landmarks" in volumes:
            measured |= {f"landmarks_{side}": f"landmarks/{pair['subject']}_{side}.nii.gz"}
    return trained, measured


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def _centred(shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """The voxel-to-world matrix: the second axis is the world's first one."""
    affine = np.zeros((4, 4))
    affine[[1, 0, 2], [0, 1, 2]] = spacing
    affine[3, 3] = 1
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data_list", help="datalist.json of the original files")
    parser.add_argument("-o", "--output", required=True, help="folder of the data set")
    parser.add_argument("--spacing", type=float, default=SPACING_MM, help="edge of a voxel in mm")
    args = parser.parse_args()
    print(build(args.data_list, args.output, args.spacing))
