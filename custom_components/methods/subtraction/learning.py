"""What the network learns from: series that are drawn anew in each step, and the objective of the search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from ...checks import check_number
from ...data.angiography import angiogram
from ...data.batches import Prepared
from ...fields import plain
from ...vocabulary import Batch, Collated, Entry, Output, Result
from .correction import subtracted
from .measures import series_metrics
from .network import network_input
from .objective import SubtractionLoss

_STILL = 2  # frames before the contrast agent arrives; the mask is one of them


class DrawnSeries(Dataset[Entry]):
    """Series of `data.angiography`, each drawn when it is asked for: {"image": (T, 2, H, W)}, see `network_input`.

    The mask is one of the first two frames. The size of the motion and the number of photons are drawn as well, the
    latter uniformly by its logarithm. Nothing of the truth is in an item.

    Args:
        count: length of an epoch.
        pixels: height and width.
        frames: T.
        motion: smallest and largest factor of the motion, see `angiogram`.
        photons: smallest and largest number.
        seed: the same series each time, for validation; None draws new ones, by torch's global generator.
    Raises:
        ValueError: if there is no series, or fewer frames than are still and one more.
    """

    def __init__(
        self,
        count: int,
        pixels: int = 192,
        frames: int = 8,
        *,
        motion: Sequence[float] = (0.3, 2.3),
        photons: Sequence[float] = (5e3, 5e4),
        seed: int | None = None,
    ) -> None:
        check_number("count", count, least=1, whole=True)
        check_number("pixels", pixels, least=16, whole=True)
        check_number("frames", frames, least=_STILL + 1, whole=True)
        self.count, self.size, self.frames, self.seed = count, (pixels, pixels), frames, seed
        self.motion, self.photons = tuple(motion), tuple(photons)

    def __len__(self) -> int:
        return self.count

    @torch.no_grad()
    def __getitem__(self, position: int) -> Entry:
        if not 0 <= position < self.count:
            raise IndexError(position)
        own = int(torch.randint(2**62, (1,))) if self.seed is None else self.seed + position
        generator = Generator().manual_seed(own)
        share = torch.rand(3, generator=generator).tolist()
        motion = self.motion[0] + share[0] * (self.motion[1] - self.motion[0])
        photons = self.photons[0] * (self.photons[1] / self.photons[0]) ** share[1]
        series = angiogram(
            self.size,
            self.frames,
            int(torch.randint(2**62, (1,), generator=generator)),
            motion=motion,
            photons=photons,
            still=_STILL,
        )
        logs = series.counts.clamp(min=1).log()
        chosen = int(share[2] * _STILL)
        return {"image": network_input(logs[chosen : chosen + 1].expand_as(logs), logs)}


def prepare_series_batch(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """Series (B, T, 2, H, W) as the network takes them, (B T, 2, H, W); for the loss "moving" and "fixed", (B, T, 1, H,
    W)."""
    image = plain(batch["image"]).to(device, non_blocking=non_blocking, **kwargs)
    return image.flatten(0, 1), {"moving": image[:, :, :1], "fixed": image[:, :, 1:]}, (), {}


class SeriesLoss(nn.Module):
    """The mean of `SubtractionLoss` over the series of a batch; its scale is that of the differences at hand.

    Args:
        smoothness, temporal, robust: see `SubtractionLoss`.
    """

    def __init__(self, smoothness: float = 1.0, temporal: float = 0.02, robust: str = "vessels") -> None:
        super().__init__()
        self.loss = SubtractionLoss(smoothness, temporal, robust, fresh=True)

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Loss, a scalar, of pred["ddf"] and pred["warped"] (B T, ...) for batch["fixed"] (B, T, 1, H, W)."""
        losses, terms = [], []
        fields, images = (_by_series(pred[key], batch) for key in ("ddf", "warped"))
        for ddf, warped, fixed in zip(fields, images, batch["fixed"], strict=True):
            one: Result = {"ddf": ddf, "warped": warped}
            losses.append(self.loss(one, {"fixed": fixed}))
            terms.append(one["terms"])
        pred["terms"] = {name: torch.stack([one[name] for one in terms]).mean() for name in terms[0]}
        return torch.stack(losses).mean()


def series_score(output: Output) -> Tensor:
    """The noise over what is left of the background, the mean over series of a validation's item: 1 at best."""
    targets = output["label"]
    found = [
        series_metrics(subtracted(fixed, moving[:1], ddf, (0,)))["background_to_noise_after"]
        for moving, fixed, ddf in zip(
            targets["moving"], targets["fixed"], _by_series(output["pred"]["ddf"], targets), strict=True
        )
    ]
    return (1 / torch.tensor(found)).mean()


def _by_series(values: Tensor, batch: Batch) -> Tensor:
    return values.unflatten(0, batch["fixed"].shape[:2])
