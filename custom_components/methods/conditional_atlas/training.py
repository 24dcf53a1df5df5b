"""Training of an atlas: its first template, and its validation score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from ...evaluation.metrics import normalized_cross_correlation
from ...evaluation.overlap import mean_dice
from ...losses.overlap import label_indicators
from ...networks.parallel import is_distributed


def template_score(output: Mapping[str, Any]) -> Tensor:
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
    """Before training: the template becomes the linear regression of the scans on their attributes, or their mean.

    Otherwise registration absorbs the variation that the attributes should explain, and the template never learns them.
    The scans, unregistered, are drawn as in training, in whole batches until there are `num_scans`; the
    attributes' mean and deviation are those of all scans. What is resumed or loaded afterwards replaces all of it, so
    this handler stands before `ResumableCheckpoint`.

    Args:
        network: `AtlasNetwork`; the affine of its grid becomes that of the scans (the mean, where they differ).
        dataloader: of the training.
        prepare_batch: of the training (`AtlasBatch`).
        registration_weights: a file of weights for the registration network alone (another bundle's model.pt), or None.
        num_scans: see above.
    """

    def __init__(
        self,
        network: Any,
        dataloader: Any,
        prepare_batch: Any,
        *,
        registration_weights: str | os.PathLike | None = None,
        num_scans: int = 100,
    ) -> None:
        self.network, self.dataloader, self.prepare_batch = network, dataloader, prepare_batch
        self.registration_weights, self.num_scans = registration_weights, num_scans

    @torch.no_grad()
    def attach(self, engine: Engine) -> None:
        """Start the network's template, and its registration network if there are weights for it."""
        template = self.network.template
        encoder = template.encoder
        if template.conditional:
            scans = self.dataloader.dataset.data
            encoder.fit(torch.stack([encoder.values({n: s[n] for n in encoder.names if n in s}) for s in scans]))
        template.initialize(*self._regress())
        if self.registration_weights is not None:
            weights = torch.load(self.registration_weights, map_location="cpu", weights_only=True)
            try:
                self.network.registration.load_state_dict(weights)
            except RuntimeError as error:
                raise RuntimeError(f"{self.registration_weights}: weights of another registration network") from error
        if is_distributed():
            for value in (*self.network.parameters(), *self.network.buffers()):
                torch.distributed.broadcast(value.data, 0)

    def _regress(self) -> list[Tensor | None]:
        """Coefficients of the images and of the labels' indicator maps, if any; sets the affine of the grid, too."""
        template, device = self.network.template, self.network.affine.device
        # Sums of products with the code (1, e): of itself, of the images, of the indicator maps.
        square, images, labels = torch.zeros((), dtype=torch.float64, device=device), None, None
        affine = torch.zeros_like(self.network.affine)
        count = 0
        for batch in self.dataloader:
            scan, targets, _, options = self.prepare_batch(batch, device)
            code = scan.new_ones(len(scan), 1)
            if template.conditional:
                code = torch.cat([code, template.encoder(options["attributes"]) - template.encoder()], 1)
            square = square + torch.einsum("be,bf->ef", code.double(), code.double())
            images = _add(images, torch.einsum("be,b...->e...", code, scan))
            if template.label_ids and "label_moving" in targets:
                shares = label_indicators(targets["label_moving"], template.label_ids).float()
                labels = _add(labels, torch.einsum("be,b...->e...", code, shares))
            affine += batch["grid_affine_moving"].to(affine).sum(0)  # as `LoadScand` gives it
            count += len(scan)
            if count >= self.num_scans:
                break
        self.network.affine.copy_(affine / count)
        # The pseudo-inverse: the columns of categories add up to 0, and scans may be fewer than attributes.
        solve = torch.linalg.pinv(square, rtol=1e-6, hermitian=True)
        return [None if p is None else torch.einsum("ef,f...->e...", solve.to(p), p) for p in (images, labels)]


def _add(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more
