"""The objective of a conditional variational autoencoder of deformations: half-way images, and a divergence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...fields import integrate_velocity, resize_field, warp
from ...vocabulary import Batch, Pred, Result
from .network import gaussian_kernel, smoothed


class LatentLoss(nn.Module):
    """similarity(m o exp(v / 2), f o exp(-v / 2)) + weight * KL(q(z | m, f) || N(0, I)).

    Both images are brought half of the way, so that neither is the one that is interpolated. The similarity is a mean
    over voxels, the divergence a sum over the dimensions of z: `weight` is their ratio.

    Args:
        similarity: as in `losses.similarity`.
        weight: of the divergence.
        free_bits: the least that each dimension counts, nats: below it a dimension is not pressed on, so that it does
            not collapse onto the prior before the decoder has found a use for it.
        num_steps: squarings.
        blur: standard deviation of a Gaussian, voxels, that smooths both images before they are warped. Interpolation
            blurs, and blurred images are more alike: without it the least loss is found where voxels are shifted by
            half of their edge, whatever they show.
        stride: voxels of the velocity along each axis for one of the grid on which it is integrated here: a velocity
            that is smooth needs not all of them.
    References: Krebs et al., DLMIA 2018 (there the similarity is a local correlation).
    """

    def __init__(
        self,
        similarity: nn.Module,
        *,
        weight: float = 2e-5,
        free_bits: float = 0.05,
        num_steps: int = 6,
        blur: float = 0.0,
        stride: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("free_bits", free_bits), ("blur", blur)):
            check_number(name, value, least=0)
        check_number("stride", stride, least=1)
        self.similarity, self.weight, self.free_bits, self.num_steps = similarity, weight, free_bits, num_steps
        self.stride, self.kernel = stride, gaussian_kernel(blur)

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]` by name.

        Args:
            pred: "svf", the velocity, and "posterior" (B, 2 K), mean and log variance of z.
            batch: "moving" and "fixed", and their masks, if they have any.
        """
        terms = self.terms(pred, batch)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return torch.stack([*terms.values()]).sum()

    def terms(self, pred: Pred, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name."""
        divergence = latent_divergence(pred["posterior"]).mean(0).clamp(min=self.free_bits)
        return {"similarity": self.half_way(pred, batch), "regularization": self.weight * divergence.sum()}

    def half_way(self, pred: Pred, batch: Batch) -> Tensor:
        """The similarity of both images in the middle, where both masks count."""
        size, half = batch["fixed"].shape[2:], pred["svf"] / 2
        half = resize_field(half, [-(-n // self.stride) for n in half.shape[2:]])
        roles = {
            "moving": resize_field(integrate_velocity(half, self.num_steps), size),
            "fixed": resize_field(integrate_velocity(-half, self.num_steps), size),
        }
        if self.kernel.device != half.device:  # once: the host waits for it
            self.kernel = self.kernel.to(half.device)
        moving, fixed = (warp(smoothed(batch[role], self.kernel), ddf) for role, ddf in roles.items())
        masks = [
            warp(batch[f"mask_{role}"].to(ddf.dtype), ddf.detach())
            for role, ddf in roles.items()
            if f"mask_{role}" in batch
        ]
        mask = torch.stack(masks).prod(0) if masks else None
        return self.similarity(moving, fixed, mask)


def latent_divergence(posterior: Tensor) -> Tensor:
    """KL of Gaussians from N(0, I) for each dimension, 0.5 (mean^2 + exp(l) - 1 - l), nats.

    Args:
        posterior: mean, then log variance l, (B, 2 K).
    Returns:
        Shape (B, K).
    """
    mean, log_variance = posterior.chunk(2, 1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
