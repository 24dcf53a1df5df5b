"""The atlas network: a template and the network that registers it to scans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...networks.parallel import is_distributed
from .template import ConditionalTemplate

# A group of parameters, "params", and their learning rate, "lr", as torch's optimisers take it.
Group = dict[str, list[nn.Parameter] | float]


class AtlasNetwork(nn.Module):
    """A template and the network that registers it, as the moving image, to a scan.

    `affine` (D + 1, D + 1), voxel to RAS mm of the template's grid, travels with the weights.

    Args:
        template: makes the moving image.
        registration: network of a pair, moving then fixed (`VoxelMorphUNet`).
    Shapes: input (B, C, *S), attributes (B, A) or None, or the template itself, (B, C, *S); output as the registration
        network's.
    """

    def __init__(self, template: ConditionalTemplate, registration: nn.Module) -> None:
        super().__init__()
        self.registration, self.template = registration, template
        self.affine = nn.Buffer(torch.eye(len(template.size) + 1, dtype=torch.float64))

    def forward(self, image: Tensor, attributes: Tensor | None = None, template: Tensor | None = None) -> Tensor:
        if template is None:
            template = self.template(attributes)
        return self.registration(torch.cat([template.expand_as(image).to(image.dtype), image], 1))

    def parameter_groups(self, learning_rate: float, template_learning_rate: float) -> list[Group]:
        """For an optimiser: the networks; the template's image and slopes; its labels' logits, ten times as fast (they
        span about ten units where intensities span one)."""
        template = self.template
        image, labels = [template.image, template.slopes], [template.logits, template.label_slopes]
        others = [p for p in self.parameters() if all(p is not q for q in image + labels)]
        return [
            {"params": others, "lr": learning_rate},
            {"params": image, "lr": template_learning_rate},
            {"params": labels, "lr": 10 * template_learning_rate},
        ]


class MeanStream(nn.Module):
    """Running mean of a field over the last samples of training.

    After c samples in all, a batch of B with mean b turns the mean m into (1 - a) m + a b with a = B / min(c, cap).
    Returned is min(1, c / cap) m, so that the first batches, whose mean is noise, hardly count. The gradient reaches
    the current batch alone, as if the mean were b: gamma |m|^2 then pulls with the gradient of gamma |E u|^2, for any
    batch size. (The reference implementation multiplies the gradient by a, 1 / 100 at batch 1.)
    In a distributed run b is the mean over all processes.

    Args:
        size: of the field.
        cap: samples that the mean remembers.
    Shapes: input (B, D, *size), output (1, D, *size).
    References: Dalca et al., NeurIPS 2019; cap and ramp as in its reference implementation.
    """

    def __init__(self, size: Sequence[int], cap: int = 100) -> None:
        super().__init__()
        self.cap = cap
        self.mean, self.count = nn.Buffer(torch.zeros(1, len(size), *size)), nn.Buffer(torch.zeros(()))

    def forward(self, field: Tensor) -> Tensor:
        batch = field.mean(0, keepdim=True)
        number = batch.new_full((), float(len(field)))
        total = batch.detach() * number
        if is_distributed():
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(number)
        self.count.add_(number)
        share = (number / self.count.clamp(max=self.cap)).clamp(max=1)
        self.mean.lerp_(total / number, share)
        return self.mean * (self.count / self.cap).clamp(max=1) + (batch - batch.detach())
