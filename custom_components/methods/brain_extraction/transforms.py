"""Dictionary transforms that find the brain in images of heads, as chains and the bundle's configs use them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ...checks import check_number
from ...data.names import file_stem, safe_name
from ...evaluation.overlap import label_overlap
from ...notices import warn
from ...results import publishing
from ...space.files import write_image
from ...space.volumes import Volume, load_image
from ...transforms.asked import refuse_unknown
from ...transforms.labels import load_labels_for
from ...transforms.scan_paths import ScanPath, release, source_in
from ...vocabulary import Data, Item
from .segmenter import BrainSegmenter, brain_mask, label_map, network_input
from .structures import STRUCTURES, volumes_ml

KINDS = ("mask", "stripped", "labels")
ANSWERS = ("labels", "mask")
_FEW_VALUES, _VALUES_SEEN = 60, 1_000_000
_ASKED = ("answer", "border", "threshold")  # what a request of MONAI Label can hold


class ExtractBraind(MapTransform):
    """Add the brain mask of each image (1, *S) under `<key>_brain`, a MetaTensor (1, *S) of uint8 on the image's grid.

    Args:
        keys: of MetaTensors of any orientation, spacing and size.
        weights: file of the network's weights, which are loaded at the first call; or a `BrainSegmenter`.
        apply: set the images to 0 outside their masks.
        border: mm around the brain that the mask keeps, too.
        device: where the network runs.
        allow_missing_keys: skip keys that an item does not have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        weights: str | os.PathLike[str] | BrainSegmenter,
        *,
        apply: bool = False,
        border: float = 0.0,
        device: str | torch.device = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.segmenter = weights if isinstance(weights, BrainSegmenter) else BrainSegmenter(weights, device=device)
        self.apply, self.border = apply, border

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if an image is not 3-D with one channel, or its weights are another network's."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            mask = result[f"{key}_brain"] = self.segmenter.mask(image, self.border)
            if self.apply:
                result[key] = image * mask.as_tensor().to(image.device)
        return result


class LoadHeadd(Transform):
    """Load the image of an item, a 3-D head of any orientation and spacing, as the network sees it (1, *S).

    Args:
        spacing: of the network's voxels, mm.
    """

    def __init__(self, spacing: float = 2.0) -> None:
        check_number("spacing", spacing, above=0)
        self.spacing = spacing

    def __call__(self, data: Data) -> Item:
        """`image`, `image_path`, which carries the volume as it was read, and `label_path` in place of `label`.

        An image of few whole numbers gives a warning.

        Raises FileNotFoundError, ValueError: if the file is no 3-D image or a mask, or a request has settings that
        nobody knows.
        """
        refuse_unknown(data, _ASKED)
        volume = load_image(source_in(data, "image"))
        if len(volume.file_shape) < 3 or volume.is_slice:
            raise ValueError(f"{volume.path}: expected a 3-D image of a head, got shape {volume.file_shape}")
        _refuse_labels(volume.data.numpy(), volume.path)
        given = volume.meta_tensor(volume.data)
        given.meta["filename_or_obj"] = str(volume.path)
        image = network_input(given, self.spacing)
        # MONAI's engines would take `label` for a target.
        rest = {key: value for key, value in data.items() if key != "label"}
        return {**rest, "image": image, "image_path": ScanPath(volume), "label_path": str(data.get("label") or "")}


def _refuse_labels(values: np.ndarray, name: str) -> None:
    """Raises ValueError: if an image has two values alone. Of few whole numbers it warns."""
    sample = np.unique(values.reshape(-1)[:: max(1, values.size // _VALUES_SEEN)])
    if len(sample) > _FEW_VALUES or not np.array_equal(sample, np.round(sample)):
        return
    found = np.unique(values)
    if len(found) == 2:
        raise ValueError(f"{name}: expected an image of a head, got a mask: each voxel is {found[0]:g} or {found[1]:g}")
    if len(found) <= _FEW_VALUES:
        warn(f"{name}: the image has {len(found)} values alone, all whole numbers; is it a label map?")


class HeadMapsd(Transform):
    """Turn the network's logits under `pred` into `mask` and `pred`, the label map: (1, *S), uint8, on the own grid.

    `image` becomes the image as it was read, with the size and affine of its file in `spatial_shape` and
    `original_affine`, where MONAI Label looks for them. `measures` holds the volume of the brain and of each structure
    in mL and, if `label_path` names a label map of the same ids, the Dice of each structure.

    Args:
        threshold: probability of brain from which a voxel is in the mask.
        border: mm of surroundings that the mask keeps, too.
        labels: make the label map; without it `pred` is the mask.

    An item can have a `threshold` and `border` of its own, and an `answer`: "labels", or "mask" for what `labels=False`
    gives.
    """

    def __init__(self, threshold: float = 0.6, border: float = 0.0, labels: bool = True) -> None:
        self.threshold, self.border, self.labels = threshold, border, labels
        self._asked({})

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if the label map is none, or not in the image's space, or an own setting is impossible."""
        options, labels = self._asked(data)
        volume, logits = ScanPath.volume_of(data["image_path"]), data["pred"]
        given = MetaTensor(logits.as_tensor().softmax(0).cpu(), affine=data["image"].affine)
        mask = brain_mask(given, volume.grid_in_file, **options, name=Path(volume.path).name)
        pred = label_map(given, volume.grid_in_file) if labels else mask
        ml = abs(float(np.linalg.det(volume.file_affine[:3, :3]))) / 1000
        measures: dict[str, object] = {"image": str(volume.path), "brain_ml": float(mask.sum()) * ml}
        if labels:
            measures |= volumes_ml(pred, volume.file_affine)
        if labels and data.get("label_path"):
            measures |= _overlaps(pred, data["label_path"], volume)
        image = volume.meta_tensor(volume.data)
        image.meta |= {"spatial_shape": tuple(image.shape[1:]), "original_affine": volume.file_affine}
        mask, pred = (MetaTensor(one, meta=image.meta) for one in (mask, pred))
        return {**data, "image": image, "mask": mask, "pred": pred, "measures": measures}

    def _asked(self, data: Data) -> tuple[dict[str, float], bool]:
        """The settings of an item, and whether it is to have a label map."""
        options = {name: data.get(name, getattr(self, name)) for name in ("threshold", "border")}
        check_number("threshold", options["threshold"], above=0, below=1)
        check_number("border", options["border"])
        answer = data.get("answer", ANSWERS[0])
        if answer not in ANSWERS:
            raise ValueError(f"expected the answer 'labels' or 'mask', got {answer!r}")
        return options, self.labels and answer == ANSWERS[0]


def _overlaps(pred: torch.Tensor, path: str, volume: Volume) -> dict[str, object]:
    """Dice of each structure with a label map, and their mean."""
    truth = load_labels_for(path, volume).data.reshape(pred.shape)
    ids = list(range(1, len(STRUCTURES)))
    dice = label_overlap(pred[None], truth[None], ids).flatten()
    found = {f"{STRUCTURES[i][0]}_dice": float(value) for i, value in zip(ids, dice, strict=True)}
    return {**found, "mean_dice": float(dice.nanmean())}


class SaveHeadd(Transform):
    """Write `<name>_mask`, `<name>_stripped` (the image, 0 outside the mask) and `<name>_labels`, each .nii.gz.

    An earlier result of the same image is replaced, nothing else ever (see `results`). An item's `id` is the name; by
    default it is that of the image's file.

    Args:
        output_dir: folder of the files.
        write: which of them.
    Raises:
        ValueError: for another word in `write`.
    """

    def __init__(self, output_dir: str, write: Sequence[str] = KINDS) -> None:
        unknown = [kind for kind in write if kind not in KINDS]
        if unknown:
            raise ValueError(f"write: expected {', '.join(KINDS)}, got {unknown[0]!r}")
        self.output_dir, self.write = output_dir, list(write)

    def __call__(self, data: Data) -> Item:
        """Adds `files`, the paths by kind. Raises OSError: if the folder cannot be written to."""
        volume = ScanPath.volume_of(data["image_path"])
        name = safe_name(str(data.get("id") or file_stem(volume.path)))
        files = {kind: Path(self.output_dir) / f"{name}_{kind}.nii.gz" for kind in self.write}
        if not files:
            return release(data)
        # Other kinds of the same image stay: one command writes masks into the folder, another label maps.
        with publishing(self.output_dir, f"head {name}", {"image": volume.origin}, add=True) as scratch:
            for kind, path in files.items():
                image, dtype = self._image(kind, data, volume)
                write_image(scratch / path.name, image, volume.file_affine, dtype=dtype)
        return {**release(data), "files": files}

    @staticmethod
    def _image(kind: str, data: Data, volume: Volume) -> tuple[torch.Tensor, np.dtype]:
        if kind != "stripped":
            return data["mask" if kind == "mask" else "pred"].as_tensor(), np.dtype(np.uint8)
        image = volume.data.reshape(data["mask"].shape) * data["mask"].as_tensor()
        whole = volume.file_dtype.kind in "iu" and bool((image == image.round()).all())
        return image, volume.file_dtype if whole else np.dtype(np.float32)
