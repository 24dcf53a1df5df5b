"""Training of an atlas: its first template, and its validation score."""

from __future__ import annotations

import os

import torch
from ignite.engine import Engine
from torch import Tensor
from torch.utils.data import DataLoader

from ...data.batches import Prepare
from ...evaluation.metrics import normalized_cross_correlation
from ...evaluation.overlap import mean_dice
from ...losses.overlap import label_indicators
from ...networks.parallel import share_weights
from ...space.grids import Grid
from ...space.resampling import resample
from ...space.volumes import load_image
from ...transforms.intensities import scale_intensity
from ...vocabulary import Entry, Output
from ...weights import load_weights
from .network import AtlasNetwork
from .template import ConditionalTemplate


def template_score(output: Output) -> Tensor:
    """The higher, the better: mean Dice of the template's most likely labels with the scans' where it has labels, else
    normalised cross-correlation of scans and warped template.

    Args:
        output: an evaluator's output, not decollated; "pred" as `TemplateInferer` returns it.
    """
    targets, pred = output["label"], output["pred"]
    if "warped_template_label" in pred and "label_moving" in targets:
        # A scan may have further labels, which are not the template's.
        labels = [int(label) for label in pred["template_label_ids"][0] if label]
        dice = mean_dice(pred["warped_template_label"], targets["label_moving"], labels)
        return torch.as_tensor(dice).float().nanmean()
    return torch.as_tensor(normalized_cross_correlation(pred["warped_template"], targets["moving"])).float().mean()


class InitializeTemplate:
    """Start a training from a template that is the linear regression of the scans on their attributes, or their mean.

    Otherwise registration absorbs the variation that the attributes should explain, and the template never learns them.
    The scans, unregistered, are drawn as in the training, in whole batches until there are `num_scans`. The
    mean and deviation of the attributes are those of all scans. Weights that are resumed or loaded afterwards replace
    all of it, so this handler stands before `TrainingRecord`.

    Args:
        network: the trained network; the affine of its grid becomes the mean of the scans' affines.
        dataloader: the training's data loader; its dataset lists the scans in `data`.
        prepare_batch: the training's `AtlasBatch`.
        registration_weights: file of weights for the registration network alone (another bundle's model.pt), or None.
        initial_template: image that takes the place of the scans' mean, as `morphzoo template` makes it, or None.
        num_scans: scans in the regression.
    """

    def __init__(
        self,
        network: AtlasNetwork,
        dataloader: DataLoader[Entry],
        prepare_batch: Prepare,
        *,
        registration_weights: str | os.PathLike[str] | None = None,
        initial_template: str | os.PathLike[str] | None = None,
        num_scans: int = 100,
    ) -> None:
        self.network, self.dataloader, self.prepare_batch = network, dataloader, prepare_batch
        self.registration_weights, self.num_scans = registration_weights, num_scans
        self.initial_template = initial_template

    @torch.no_grad()
    def attach(self, engine: Engine) -> None:
        """Initialise the network at once; nothing is attached. All processes get the first one's weights."""
        template = self.network.template
        encoder = template.encoder
        if template.conditional:
            scans = self.dataloader.dataset.data  # type: ignore[attr-defined]  # torch's class does not know it
            encoder.fit(torch.stack([encoder.values({n: s[n] for n in encoder.names if n in s}) for s in scans]))
        regression = self._regress()
        template.initialize(*regression.coefficients())
        self.network.affine.copy_(regression.affine())
        if self.initial_template is not None:
            given = load_image(self.initial_template)
            grid = Grid(self.network.affine.double().cpu().numpy(), tuple(template.size))
            image = resample(scale_intensity(given.data), given.affine, grid, fill=0.0, antialias=True)
            template.image.copy_(image[None])
        if self.registration_weights is not None:
            load_weights(self.network.registration, self.registration_weights, "registration")
        share_weights(self.network)

    def _regress(self) -> _Regression:
        regression = _Regression(self.network.template)
        for batch in self.dataloader:
            scan, targets, _, options = self.prepare_batch(batch, self.network.affine.device)
            affine = batch["grid_affine_moving"].to(self.network.affine)  # as `LoadScand` gives it
            regression.add(scan, targets.get("label_moving"), options.get("attributes"), affine)
            if regression.count >= self.num_scans:
                break
        return regression


class _Regression:
    """Least squares of images, and of labels' indicator maps, on the code (1, e - e_0) of the scans' attributes."""

    def __init__(self, template: ConditionalTemplate) -> None:
        self.template = template
        self.count = 0
        # Sums over the scans of products with the code: of itself, of the images, of the indicator maps; of affines.
        self.codes: Tensor | None = None
        self.images: Tensor | None = None
        self.shares: Tensor | None = None
        self.affines: Tensor | None = None

    def add(self, scan: Tensor, labels: Tensor | None, attributes: Tensor | None, affine: Tensor) -> None:
        """Add a batch: scans (B, C, *S), label maps (B, 1, *S), attributes (B, A), affines (B, D + 1, D + 1)."""
        code = scan.new_ones(len(scan), 1)
        if self.template.conditional:
            encoder = self.template.encoder
            code = torch.cat([code, encoder(attributes) - encoder()], 1)
        self.codes = _plus(self.codes, torch.einsum("be,bf->ef", code.double(), code.double()))
        self.images = _plus(self.images, torch.einsum("be,b...->e...", code, scan))
        if self.template.label_ids and labels is not None:
            indicators = label_indicators(labels, self.template.label_ids).float()
            self.shares = _plus(self.shares, torch.einsum("be,b...->e...", code, indicators))
        self.affines = _plus(self.affines, affine.sum(0))
        self.count += len(scan)

    def coefficients(self) -> tuple[Tensor, Tensor | None]:
        """Of the images (1 + E, C, *S), and of the indicator maps (1 + E, K, *S) if there are labels."""
        assert self.codes is not None
        assert self.images is not None
        # The pseudo-inverse: the columns of categories add up to 0, and there may be fewer scans than attributes.
        solve = torch.linalg.pinv(self.codes, rtol=1e-6, hermitian=True).to(self.images)
        image = torch.einsum("ef,f...->e...", solve, self.images)
        return image, None if self.shares is None else torch.einsum("ef,f...->e...", solve, self.shares)

    def affine(self) -> Tensor:
        """The mean of the scans' affines."""
        assert self.affines is not None
        return self.affines / self.count


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value
