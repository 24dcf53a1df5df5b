"""Segmentation by registration: the labels of an atlas, or of another scan, on the grid of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from ..space.warping import warp_image
from ..vocabulary import Data, Item
from .asked import Asked
from .load import LoadOptions, LoadPaird
from .registered import RegisteredPair
from .save import warp_labels
from .scan_paths import release, source_in

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LoadAtlasPaird(LoadPaird):
    """Load a pair of an atlas with labels, which is the moving image, and a study, which is the fixed one.

    Takes an item with the study's path under `image`, as MONAI Label hands it over. An item can bring another moving
    image: its path under `moving` and that of its labels under `label_moving`, or under `label`, where MONAI Label puts
    an uploaded file. It needs none if its `answer` is "image" (see `PropagateLabelsd`).

    Args:
        atlas, atlas_labels: paths of the image and of its label map.
        asked: takes the settings of each request; None where items come from a list.
        **options: of `LoadPaird`.
    """

    def __init__(
        self, *, atlas: str, atlas_labels: str, asked: Asked | None = None, **options: Unpack[LoadOptions]
    ) -> None:
        super().__init__(**options)
        self.atlas, self.atlas_labels, self.asked = atlas, atlas_labels, asked

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: also if an item brings a moving image without labels, or asks for what cannot be."""
        if self.asked is not None:
            self.asked.take(data)
        pair: Item = {"fixed": source_in(data, "image")}
        pair |= {"moving": self.atlas, "label_moving": self.atlas_labels}
        if data.get("moving"):
            pair |= {"moving": data["moving"], "label_moving": data.get("label_moving") or data.get("label")}
            if not pair["label_moving"] and data.get("answer") != "image":
                raise ValueError(f"{data['moving']}: expected its label map, too, under 'label_moving' or 'label'")
        if data.get("affine"):
            pair["affine"] = data["affine"]
        return {**data, **super().__call__(pair)}


class PropagateLabelsd(Transform):
    """The moving image's label map on the fixed image's own grid, looked up once, by nearest neighbour.

    Expects one (decollated) item as `LoadPaird` made it, with labels, and with `pred` holding `ddf` (D, *S) in voxels
    of the model grid. It replaces `pred` by the labels (1, *S), int16, with the file's affine (RAS mm), and adds
    `image_meta_dict`, in which MONAI Label looks for the study's grid. If the item's entry `answer` is "image", `pred`
    is the moving image itself, interpolated once, float32.
    """

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if the answer is neither, the label ids do not fit into int16, or the fields not to the
        grid."""
        answer = data.get("answer", "labels")
        if answer not in ("labels", "image"):
            raise ValueError(f"expected the answer 'labels' or 'image', got {answer!r}")
        pair = RegisteredPair.of(data)
        fixed, moving = pair.volumes["fixed"], pair.volumes["moving"]
        if answer == "image":
            warped = warp_image(moving, fixed.grid, pair.forward).float()
        else:
            labels = pair.volumes["label_moving"]
            if labels.data.max() > torch.iinfo(torch.int16).max:
                raise ValueError(f"{labels.path}: expected label ids up to 32767, got {int(labels.data.max())}")
            warped = warp_labels(labels, fixed.grid, pair.forward).to(torch.int16)
        meta = {"spatial_shape": fixed.grid.size, "original_affine": fixed.affine}
        # As MONAI's loader describes a file without channels; without it, MONAI 1.6.1 saves the labels as if 2-D.
        described = {"filename_or_obj": fixed.path, "original_channel_dim": "no_channel"}
        pred = MetaTensor(warped, affine=torch.from_numpy(fixed.affine), meta=described)
        return {**release(data), "pred": pred, "image_meta_dict": meta}
