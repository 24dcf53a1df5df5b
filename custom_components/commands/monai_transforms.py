"""Registration as MONAI's dictionary transforms, for `monai.transforms.Compose`.

Convention: an item holds images (C, *S) with their affines (MetaTensors), or anything else that `register` takes. The
first of the `keys` is the moving image; the others lie in its space, labels for instance, and are warped along. After
the call they are on the fixed image's grid. Where images lie in the world is respected throughout. Operations that are
pending on a lazy tensor are applied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from ..inference.pairwise import Pairwise
from ..space.memory_images import Image, channels_of, source_of
from ..space.transform import Transform
from ..space.volumes import load_channels, load_grid
from ..vocabulary import Data, Item
from .bundles import DEFAULT_BUNDLE
from .registrar import Registrar

if TYPE_CHECKING:
    from collections.abc import Hashable


def _listed(batch: list[Transform], **_: object) -> list[Transform]:
    return batch


default_collate_fn_map[Transform] = _listed  # so that data loaders hand transforms through


class _Warpingd(MapTransform, InvertibleTransform):
    """Warp the images under some keys by one transform, remember it, and take it back in `inverse`."""

    def __init__(self, keys: KeysCollection, modes: str | Sequence[str], *, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.modes = ensure_tuple_rep(modes, len(self.keys))

    def warp(self, data: Data, transform: Transform, like: Image) -> Item:
        """The item with its images on the grid of another one."""
        result = dict(data)
        for key, mode in self.key_iterator(result, self.modes):
            image = source_of(result[key], str(key))
            warped, before = transform.warp(image, like, interpolation=mode), load_grid(image)
            if isinstance(result[key], MetaTensor):
                warped = _described_as(result[key], warped)
            extra = {"size": before.file_shape[:3], "affine": before.file_affine, "transform": transform, "mode": mode}
            self.push_transform(warped, orig_size=before.grid.size, extra_info=extra)
            result[key] = warped
        return result

    def inverse(self, data: Data) -> Item:
        """The images back on their own grids. Raises ValueError: if the transform has no inverse."""
        result = dict(data)
        for key in self.key_iterator(result):
            info = self.pop_transform(result[key])["extra_info"]
            like = np.broadcast_to(np.uint8(0), info["size"]), info["affine"]
            back = info["transform"].inverse().warp(result[key], like, interpolation=info["mode"])
            result[key] = _described_as(result[key], back)
        return result


def _described_as(source: MetaTensor, image: MetaTensor) -> MetaTensor:
    """An image with the metadata and the history of another, on its device; the affine is its own."""
    meta = {**source.meta, "affine": image.affine, "space": "RAS"}
    return MetaTensor(
        image.as_tensor().to(source.device), meta=meta, applied_operations=list(source.applied_operations)
    )


class Registerd(_Warpingd):
    """Register with a bundle's network: `mz.register` for the images of an item.

    Args:
        keys: the moving image, then others in its space that are warped along.
        fixed: key of the fixed image.
        transform: key under which the `Transform` from fixed to moving points is stored.
        metrics: key under which the measures are stored; None leaves them out.
        modes: interpolation of each key; "auto" finds out what are labels.
        registrar: what registers; None makes one of the bundle and the settings, at the first item.
        bundle: name of a bundle, or its folder.
        allow_missing_keys: keys other than the first may be missing.
        **settings: of the bundle, as for `register`.
    """

    def __init__(
        self,
        keys: KeysCollection = "moving",
        fixed: Hashable = "fixed",
        *,
        transform: str = "transform",
        metrics: str | None = None,
        modes: str | Sequence[str] = "auto",
        registrar: Registrar | None = None,
        bundle: str = DEFAULT_BUNDLE,
        allow_missing_keys: bool = False,
        **settings: object,
    ) -> None:
        super().__init__(keys, modes, allow_missing_keys=allow_missing_keys)
        self.fixed, self.transform, self.metrics = fixed, transform, metrics
        self.registrar = registrar or Registrar(bundle, **{"report#picture": False, **settings})  # type: ignore[arg-type]

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: with one sentence, if an image is none, or the two do not go together."""
        found = self.registrar(data[self.keys[0]], data[self.fixed])
        result = {**self.warp(data, found.transform, data[self.fixed]), self.transform: found.transform}
        return result if self.metrics is None else {**result, self.metrics: found.metrics}


class PairwiseRegistrationd(_Warpingd):
    """Register by optimisation alone, with any `loss(warped, fixed)`, coarse to fine.

    Intensities are compared as they are: scale them first where the loss asks for it.

    Args:
        keys: the moving image, then others in its space that are warped along.
        fixed: key of the fixed image.
        loss: one of MONAI's (`LocalNormalizedCrossCorrelationLoss`, `GlobalMutualInformationLoss`), or any function of
            two images (1, C, *S) that returns one number.
        model: "affine", "velocity" (a stationary one, which does not fold) or "displacement"; or several, one after the
            other.
        transform: key under which the `Transform` from fixed to moving points is stored.
        modes: interpolation of each key; "auto" finds out what are labels.
        device: where to optimise; None takes that of the fixed image.
        allow_missing_keys: keys other than the first may be missing.
        **options: of `Pairwise`: `levels` (shrink factors of the images, coarse to fine), `iterations` at each level,
            `regularization` (a module such as MONAI's `BendingEnergyLoss`), its `weight`, `method`, `learning_rate`.
    Raises:
        ValueError: for another model, levels and iterations of unequal number, or a weight below 0.
    """

    def __init__(
        self,
        keys: KeysCollection = "moving",
        fixed: Hashable = "fixed",
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        model: str | Sequence[str] = ("affine", "velocity"),
        transform: str = "transform",
        modes: str | Sequence[str] = "auto",
        device: torch.device | str | None = None,
        allow_missing_keys: bool = False,
        **options: object,
    ) -> None:
        super().__init__(keys, modes, allow_missing_keys=allow_missing_keys)
        self.fixed, self.transform, self.device = fixed, transform, device
        self.optimize = Pairwise(loss, (model,) if isinstance(model, str) else tuple(model), **options)  # type: ignore[arg-type]

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if an image is none, or the two differ in dimension; RuntimeError: if the loss stops being
        finite."""
        moving, fixed = (load_channels(channels_of(data[key], str(key))) for key in (self.keys[0], self.fixed))
        device = getattr(data[self.fixed], "device", "cpu") if self.device is None else self.device
        found = self.optimize(moving, fixed, device)
        return {**self.warp(data, found, data[self.fixed]), self.transform: found}


class ApplyTransformd(_Warpingd):
    """Bring images through a transform that an item holds, or that is given.

    Args:
        keys: the images.
        like: key of the image whose grid they take.
        transform: key of a `Transform`, or one itself, or the path of a file that holds it.
        inverse: go the other way, from the fixed image's space to the moving one's.
        modes: interpolation of each key; "auto" finds out what are labels.
        allow_missing_keys: keys may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        like: Hashable,
        transform: Hashable | Transform = "transform",
        *,
        inverse: bool = False,
        modes: str | Sequence[str] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, modes, allow_missing_keys=allow_missing_keys)
        self.like, self.transform, self.inverted = like, transform, inverse

    def __call__(self, data: Data) -> Item:
        """Raises ValueError: if the transform has no inverse and it is asked for, or does not fit the images."""
        found = self.transform
        found = data.get(found, found) if not isinstance(found, Transform) else found
        found = found if isinstance(found, Transform) else Transform.read(str(found))
        return self.warp(data, found.inverse() if self.inverted else found, data[self.like])
