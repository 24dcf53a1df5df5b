"""Training against a discriminator, by MONAI's engine for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import GanTrainer, SupervisedEvaluator
from monai.handlers import ValidationHandler
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import Dataset

from ...data.batches import Prepare, Prepared
from ...networks.blocks import convolution
from ...training.loading import loader
from ...vocabulary import Batch, Collated, Entry, Result
from .adversaries import Adversary


class Discriminator(nn.Sequential):
    """Convolutions that judge each patch: a map of logits, high where the input looks real.

    Spectral normalisation bounds how fast the judgement can change.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of what it is shown: D^2 derivatives, or two images.
        widths: features of the layers of stride 2 before the last.
    Shapes: input (B, in_channels, *S), output (B, 1, *S').
    References: spectral normalisation: Miyato et al., ICLR 2018.
    """

    def __init__(self, spatial_dims: int = 3, in_channels: int = 9, widths: Sequence[int] = (16, 32, 64)) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((in_channels, *widths)):
            layers += [spectral_norm(convolution(spatial_dims, a, b, 3, stride=2)), nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(convolution(spatial_dims, widths[-1], 1, 3)))
        super().__init__(*layers)


class Game:
    """A registration network against a discriminator: what MONAI's `GanTrainer` asks for at each step.

    The network minimises loss + weight * mean softplus(-D(fake)); the discriminator, on what was just predicted, mean
    softplus(-D(real)) + mean softplus(D(fake)), the targets of the real ones being `smoothing` instead of 1. At the
    balance, where it cannot tell them apart, that is 2 ln 2 and the network's part ln 2.

    Args:
        prepare_batch, inferer, loss: of the registration.
        discriminator: from what the adversary shows to logits.
        adversary: makes the real and the fake.
        weight: of the discriminator's judgement in the network's loss.
        smoothing: target of the real ones.
    References: Goodfellow et al., NeurIPS 2014 (the non-saturating loss).
    """

    def __init__(
        self,
        prepare_batch: Prepare,
        inferer: Callable[..., Result],
        loss: Callable[[Result, Batch], Tensor],
        discriminator: nn.Module,
        adversary: Adversary,
        *,
        weight: float = 0.1,
        smoothing: float = 0.9,
    ) -> None:
        self.prepare_batch, self.inferer, self.loss = prepare_batch, inferer, loss
        self.discriminator, self.adversary, self.weight, self.smoothing = discriminator, adversary, weight, smoothing
        self.batch: Prepared | None = None
        self.pred: Result | None = None
        self.accuracy = torch.zeros(())

    def prepare(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
    ) -> dict[str, Tensor]:
        """The targets of a new batch, which is kept."""
        self.batch, self.pred = self.prepare_batch(batch, device, non_blocking, **kwargs), None
        return self.batch[1]

    def inputs(self, **latent: object) -> Prepared:
        """The batch in place of a generator's random numbers."""
        assert self.batch is not None
        return self.batch

    def predict(self, prepared: Prepared, network: nn.Module) -> Result:
        """The registration, once for each batch: the discriminator's step changes nothing in it."""
        if self.pred is None:
            network.train()  # a validation may have come before
            image, _, positional, options = prepared
            self.pred = self.inferer(image, network, *positional, **options)
        return self.pred

    def discriminator_loss(self, pred: Result, targets: Batch) -> Tensor:
        """Of the discriminator, which sees the prediction without its gradient."""
        assert self.batch is not None
        with torch.no_grad():
            shown = [self.adversary.real(targets), self.adversary.fake(pred, targets)]
        real, fake = (self.discriminator(one) for one in shown)
        self.accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()).detach() / 2
        wanted = torch.full_like(real, self.smoothing)
        return F.binary_cross_entropy_with_logits(real, wanted) + F.softplus(fake).mean()

    def network_loss(self, pred: Result) -> Tensor:
        """Of the registration network; the terms are left in `pred["terms"]`."""
        assert self.batch is not None
        targets = self.batch[1]
        loss = self.loss(pred, targets)
        adversarial = self.weight * F.softplus(-self.discriminator(self.adversary.fake(pred, targets))).mean()
        pred["terms"] = {**pred["terms"], "adversarial": adversarial.detach(), "accuracy": self.accuracy}
        return loss + adversarial

    def attach(self, engine: Engine) -> None:
        """Name the outputs of `GanTrainer` as those of the other trainings, for the handlers that come after."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.name)

    def name(self, engine: Engine) -> None:
        """Add "loss", "pred" and "label" to an output."""
        output, targets = engine.state.output, self.batch[1] if self.batch else {}
        terms = {**output["fakes"]["terms"], "discriminator": torch.tensor(output["d_loss"])}
        output |= {
            "loss": torch.tensor(output["g_loss"]),
            "pred": {**output["fakes"], "terms": terms},
            "label": targets,
        }


def adversarial_trainer(
    game: Game,
    dataset: Dataset[Entry],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    evaluator: SupervisedEvaluator,
    max_epochs: int,
    batch_size: int = 1,
    val_interval: int = 1,
    train_handlers: Sequence[object] = (),
) -> GanTrainer:
    """MONAI's `GanTrainer` for a registration network and its discriminator, one step of each for a batch.

    Args:
        game: what both minimise.
        dataset: the training items.
        discriminator_optimizer: of the discriminator's weights.
        network, optimizer, device, evaluator, max_epochs, batch_size, val_interval, train_handlers: as for
            `training.trainer`.
    """
    return GanTrainer(
        device=device,
        max_epochs=max_epochs,
        train_data_loader=loader(dataset, batch_size),
        g_network=network,
        g_optimizer=optimizer,
        g_loss_function=game.network_loss,
        g_inferer=game.predict,
        g_prepare_batch=game.inputs,
        g_update_latents=False,
        d_network=game.discriminator,
        d_optimizer=discriminator_optimizer,
        d_loss_function=game.discriminator_loss,
        d_prepare_batch=game.prepare,
        train_handlers=[game, ValidationHandler(val_interval, evaluator), *train_handlers],
        decollate=False,
    )
