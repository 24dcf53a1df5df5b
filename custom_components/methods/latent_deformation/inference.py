"""Registration through a latent vector, and what else a latent space is good for: samples, paths, transport."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from monai.data import list_data_collate
from monai.inferers import Inferer
from torch import Generator, Tensor

from ...checks import check_number
from ...data.batches import prepare_pair_batch
from ...deformations.base import Deformation
from ...inference.prediction import Masks, Network, Precision, Prediction
from ...inference.pyramid import shrink
from ...inference.registration import RegistrationInferer, as_pair, first_channels
from ...memory import check_memory
from ...networks.parallel import unwrap
from ...networks.zero import ZeroField
from ...vocabulary import Data, Item, Result
from .latent import decode, posterior
from .window import Window

KINDS = ("posterior", "prior", "path")


class Source:
    """A pair whose latent vector is used for others.

    Args:
        moving, fixed: files.
        load: as the bundle loads any pair ("preprocessing").
    """

    def __init__(
        self, moving: str | os.PathLike[str], fixed: str | os.PathLike[str], load: Callable[[Data], Item]
    ) -> None:
        self.moving, self.fixed, self.load = moving, fixed, load
        self.image: Tensor | None = None

    def __call__(self, device: torch.device) -> Tensor:
        """The pair (1, 2, *S), read once. Raises FileNotFoundError: if a file is missing; else as `load`."""
        if self.image is None:
            for path in (self.moving, self.fixed):
                if not os.path.exists(path):
                    raise FileNotFoundError(f"{path}: there is no such file; give --source_moving and --source_fixed")
            item = self.load({"moving": str(self.moving), "fixed": str(self.fixed)})
            image, _, _, options = prepare_pair_batch(list_data_collate([item]))
            self.image = shrink(first_channels(as_pair(image)), options.get("finer", 1))
        return self.image.to(device)


class LatentPredictor:
    """The velocity of the latent vector of a pair, or of another pair's: transport.

    The result also has "posterior" (B, 2 K), mean and log variance of z, and "latent" (B, K), the z that was decoded.
    A network without a latent space (`networks.zero`) answers as it does.

    Args:
        precision: of the network, see `inference.prediction.Precision`.
        window: what the network sees: so many voxels along each axis about the fixed image's centre of mass, as in its
            training. None: the whole images.
        draw: decode a sample of the posterior, as in training, and not its mean.
        transported: decode the latent vector of this pair with the moving image of the one at hand.
    """

    def __init__(
        self,
        precision: str = "float32",
        *,
        window: list[int] | None = None,
        draw: bool = False,
        transported: Source | None = None,
    ) -> None:
        self.precision, self.draw, self.transported = Precision(precision), draw, transported
        self.size = window

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        if isinstance(unwrap(network), ZeroField):
            return Prediction(self.precision.run(network, image), deformation)
        statistics = self.statistics(image, network)
        mean, log_variance = statistics.chunk(2, 1)
        latent = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.draw else mean
        if self.transported is not None:
            latent = self.statistics(self.transported(image.device), network).chunk(2, 1)[0].expand_as(mean)
        velocity = self.velocity(image, network, latent)
        return Prediction(velocity, deformation, {"posterior": statistics, "latent": latent})

    def statistics(self, image: Tensor, network: Network) -> Tensor:
        """Mean and log variance of z of pairs (B, 2, *S)."""
        return posterior(network, Window(image, self.size).image, self.precision)

    def velocity(self, image: Tensor, network: Network, latent: Tensor) -> Tensor:
        """The velocity (B, D, *S) of latent vectors (B, K) for the moving images of pairs (B, 2, *S)."""
        window = Window(image, self.size)
        return window.field(decode(network, latent, window.image, self.precision))


class LatentInferer(Inferer):
    """Add to a registration other deformations of the moving image, of other latent vectors.

    "ddf_samples" (B, N, D, *S), voxels, on the CPU, and "velocity_sd" (B, D, *S), the velocities' standard deviation.

    - "posterior": samples of q(z | m, f): other answers for the pair.
    - "prior": samples of N(0, I): deformations as the training's people have them, of this anatomy.
    - "path": (1 - t) z + t z', from the z of the pair to that of `other`, t = 0 ... 1; without one to 0, the prior's
      mean.

    Args:
        inferer: whose `predict` is a `LatentPredictor`.
        samples: N; 0 adds nothing.
        of: "posterior", "prior" or "path".
        other: the pair at the end of the path.
        seed: of each batch anew, so that a pair gives the same samples in any list. The noise is drawn on the CPU.
    Raises:
        ValueError: for another word; on a call, if the network has no latent space.
    """

    def __init__(
        self,
        inferer: RegistrationInferer,
        *,
        samples: int = 0,
        of: str = "posterior",
        other: Source | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("samples", samples, least=0, whole=True)
        if of not in KINDS:
            raise ValueError(f"expected samples of {', '.join(KINDS)}, got {of!r}")
        self.inferer, self.samples, self.of, self.other, self.seed = inferer, samples, of, other, seed

    def __call__(
        self, inputs: Tensor, network: Network, *, masks: Masks | None = None, finer: int = 1, **options: object
    ) -> Result:
        """As the inferer inside."""
        pred: Result = self.inferer(inputs, network, masks=masks, finer=finer, **options)
        if not self.samples:
            return pred
        if "posterior" not in pred:
            raise ValueError("samples need a network with a latent space; this one gives a velocity alone")
        predict, deformation = self.inferer.predict, self.inferer.deformation
        assert isinstance(predict, LatentPredictor)
        image = shrink(first_channels(as_pair(inputs)), finer)
        size = pred["ddf"].shape[2:]
        needed = 2 * 4.0 * self.samples * pred["ddf"].numel()
        check_memory(needed, f"drawing {self.samples} samples", "give fewer --samples or a coarser --spacing")
        ddfs, velocities = [], []
        for latent in self._vectors(pred, image, network):
            velocity = predict.velocity(image, network, latent)
            ddfs.append(deformation(velocity, size)["ddf"].cpu())
            velocities.append(velocity.cpu())
        spread = torch.stack(velocities).std(0, correction=0)
        return {**pred, "ddf_samples": torch.stack(ddfs, 1), "velocity_sd": spread}

    def _vectors(self, pred: Result, image: Tensor, network: Network) -> list[Tensor]:
        mean, log_variance = pred["posterior"].chunk(2, 1)
        if self.of == "path":
            end = torch.zeros_like(mean)
            if self.other is not None:
                predict = self.inferer.predict
                assert isinstance(predict, LatentPredictor)
                end = predict.statistics(self.other(image.device), network).chunk(2, 1)[0].expand_as(mean)
            return [torch.lerp(mean, end, float(t)) for t in torch.linspace(0, 1, self.samples)]
        generator = Generator().manual_seed(self.seed)
        noise = [torch.randn(mean.shape, generator=generator).to(mean) for _ in range(self.samples)]
        return noise if self.of == "prior" else [mean + (log_variance / 2).exp() * draw for draw in noise]
