"""Templates (atlases) that are learned with the registrations to them: one image, or an image for each value of
attributes such as age and sex."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.blocks import convolution, crop
from ...repeatable import resize
from ...vocabulary import Config
from .attributes import AttributeEncoder, Kinds, read_description


class ConditionalTemplate(nn.Module):
    """A template as a function of attributes: T(a) = image + sum of (e - e_0)_k slope_k + decoder(e), e encodes a.

    Image and slopes are parameters that start as the regression of the scans on their attributes (`initialize`); the
    slopes live on a grid twice as coarse, e_0 encodes average attributes. The decoder, for what is not linear, starts
    from a dense layer at a low resolution, which it doubles at each level, and begins near zero.
    With `paper=True` there are no slopes, and the decoder is the published one: a dense layer of four features at full
    resolution with ELU, then linear convolutions (82.6 M parameters for two attributes at 160 x 192 x 224).
    Without attributes there is only the image.

    With `labels` a probabilistic label map is learned alongside, logits of the same form: a parameter on a grid
    `label_stride` times coarser (linearly interpolated), slopes twice as coarse as that, channels of the decoder.

    Args:
        size: of the image.
        attributes: see `AttributeEncoder`; empty for an unconditional template.
        channels: of the image.
        labels: ids of the label map, the background's among them; None for no label map.
        label_stride: see above; 1 for full resolution.
        features: of the decoder's levels, from the lowest resolution up; the number of doublings is one less.
        hidden: features of the dense layer before the low-resolution one.
        paper: the published decoder instead.
    Shapes: input (B, A), raw attributes (a category as its index), or None for average ones; output
        (B, channels, *size), (1, channels, *size) if there is nothing to tell the samples apart.
    Raises:
        ValueError: for a size, labels or a stride that are impossible.
    References: Dalca et al., NeurIPS 2019.
    """

    def __init__(
        self,
        size: Sequence[int],
        attributes: Kinds | None = None,
        *,
        channels: int = 1,
        labels: Sequence[int] | None = None,
        label_stride: int = 1,
        features: Sequence[int] = (32, 32, 32, 16, 16),
        hidden: int = 32,
        paper: bool = False,
    ) -> None:
        super().__init__()
        if len(size) not in (2, 3) or min(size) < 1 or label_stride < 1 or (labels is not None and len(labels) < 2):
            raise ValueError(
                f"expected a size of 2 or 3 axes, at least two labels or none, and a stride of at least 1, "
                f"got {list(size)}, {labels} and {label_stride}"
            )
        self.size, self.channels, self.label_ids = list(size), channels, list(labels or [])
        self.mode = "trilinear" if len(size) == 3 else "bilinear"
        self.encoder = AttributeEncoder(attributes or {})
        self.conditional = bool(attributes)
        self.image = nn.Parameter(torch.zeros(1, channels, *size))
        logits = torch.zeros(1, len(self.label_ids), *[-(-n // label_stride) for n in size])
        # Without labels nothing depends on it, and distributed training must not wait for its gradient.
        self.logits = nn.Parameter(logits, requires_grad=bool(self.label_ids))
        self.doubling = not paper
        self._add_slopes(logits.shape[2:])
        self.start, self.levels, self.last = nn.Sequential(), nn.ModuleList(), nn.ModuleList()
        self.start_shape = [0]
        if self.conditional:
            if paper:
                self._add_published_decoder()
            else:
                self._add_decoder(features, hidden)
            last = convolution(len(size), 4 if paper else features[-1], channels + len(self.label_ids))
            nn.init.normal_(last.weight, std=1e-7 if paper else 1e-3)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.last.append(last)

    def _add_slopes(self, label_size: Sequence[int]) -> None:
        """Linear terms on grids twice as coarse as the image's and the labels'; none of them for the published form."""
        number = self.encoder.size if self.conditional and self.doubling else 0
        shape, label_shape = ([-(-n // 2) for n in size] for size in (self.size, label_size))
        self.slopes = nn.Parameter(torch.zeros(number, self.channels, *shape), requires_grad=number > 0)
        slopes = torch.zeros(number, len(self.label_ids), *label_shape)
        self.label_slopes = nn.Parameter(slopes, requires_grad=slopes.numel() > 0)

    def _add_decoder(self, features: Sequence[int], hidden: int) -> None:
        self.start_shape = [features[0]] + [-(-n // 2 ** (len(features) - 1)) for n in self.size]
        dense = [nn.Linear(self.encoder.size, hidden), nn.LeakyReLU(0.2)]
        self.start = nn.Sequential(*dense, nn.Linear(hidden, math.prod(self.start_shape)), nn.LeakyReLU(0.2))
        for n_in, n_out in itertools.pairwise(features):
            self.levels.append(nn.Sequential(convolution(len(self.size), n_in, n_out), nn.LeakyReLU(0.2)))

    def _add_published_decoder(self) -> None:
        self.start_shape = [4] + self.size
        self.start = nn.Sequential(nn.Linear(self.encoder.size, math.prod(self.start_shape)), nn.ELU())
        self.levels.append(nn.Sequential(*(convolution(len(self.size), 4, 4, width) for width in (1, 3, 3, 3))))

    def forward(self, attributes: Tensor | None = None) -> Tensor:
        """The template image."""
        return self.render(attributes)[0]

    def render(self, attributes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The template image, and the logits of its labels (B, K, *size), K = 0 without labels."""
        image: Tensor = self.image
        logits = self.enlarge(self.logits)
        for last in self.last:
            code = self.encoder(attributes)
            centred = code - self.encoder()
            x = self.start(code).reshape([-1] + self.start_shape)
            # Faster on CPUs with bfloat16 units, by a third of a training step in 3-D.
            x = x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
            for level in self.levels:
                if self.doubling:
                    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = level(x)
            x = last(x)
            x = crop(x, self.size).to(image.dtype)
            image = image + self.linear(centred, self.slopes) + x[:, : self.channels]
            logits = logits + self.linear(centred, self.label_slopes) + x[:, self.channels :]
        return image, logits

    def linear(self, code: Tensor, slopes: Tensor) -> Tensor:
        """The sum of the slopes (E, K, *S'), weighted by the centred code (B, E), at full size."""
        if slopes.numel() == 0:
            return torch.zeros([1, slopes.shape[1]] + [1] * len(self.size), device=code.device)
        # Not a matrix product, which autocast would round to bfloat16.
        total = (code.to(slopes.dtype).unsqueeze(2) * slopes.flatten(1)).sum(1)
        return self.enlarge(total.reshape([-1] + list(slopes.shape[1:])))

    def enlarge(self, x: Tensor) -> Tensor:
        """Channels (B, K, *S') of a coarser grid at full size, corners aligned."""
        if list(x.shape[2:]) == self.size:
            return x
        if x.shape[1] == 0:
            return torch.zeros([x.shape[0], 0] + self.size, device=x.device)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.interpolate(x, self.size, mode=self.mode, align_corners=True)
        return resize(x, self.size)

    @torch.no_grad()
    def initialize(self, image: Tensor, shares: Tensor | None = None) -> None:
        """Start from regression coefficients, the constant first, then one for each entry of e - e_0, if any.

        Args:
            image: of the scans, (1 or 1 + E, C, *size).
            shares: of the labels' indicator maps, (1 or 1 + E, K, *size).
        """
        self.image.copy_(image[:1])
        slopes = len(image) > 1 and len(self.slopes) > 0
        if slopes:
            self.slopes.copy_(self.shrink(image[1:], self.slopes))
        if shares is not None:
            mean = self.shrink(shares[:1], self.logits).clamp(min=0.01)
            self.logits.copy_(mean.log())
            if slopes:
                # d log p = dp / p; where a label is rare, that would be a large number made of a few voxels.
                change = shares[1:] / shares[:1].clamp(min=0.05)
                self.label_slopes.copy_(self.shrink(change, self.label_slopes))

    def shrink(self, x: Tensor, like: Tensor) -> Tensor:
        """Channels (B, K, *size) on the coarser grid of a parameter, corners aligned."""
        return F.interpolate(x, like.shape[2:], mode=self.mode, align_corners=True)

    def most_likely(self, scores: Tensor) -> Tensor:
        """The label ids (B, 1, *S), int32, of the highest of logits or probabilities (B, K, *S)."""
        ids = torch.tensor(self.label_ids, dtype=torch.int32, device=scores.device)
        return ids[scores.argmax(1, keepdim=True)]

    def description(self) -> Config:
        """What it was made for: `attributes` and `labels`."""
        pairs = zip(self.encoder.names, self.encoder.categories, strict=True)
        return {"attributes": {name: c or "numeric" for name, c in pairs}, "labels": self.label_ids or None}

    def get_extra_state(self) -> Tensor:
        """The description as bytes: a tensor, as everything else in a file of weights."""
        return torch.tensor(list(json.dumps(self.description()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        found = read_description(state)
        if json.dumps(found) != json.dumps(self.description()):  # the order counts, too
            raise RuntimeError(f"weights of a template with {found}, not {self.description()}")


def template_settings(weights: Mapping[str, Tensor]) -> Config:
    """What a `ConditionalTemplate` must be made with for the weights of an `AtlasNetwork`.

    Returns:
        Its arguments by name: size, attributes, labels, label_stride, and features, hidden and paper as far as needed.

    Raises:
        ValueError: if they are not the weights of one.
    """
    keys = ("template.image", "template.logits", "template._extra_state")
    if not all(isinstance(weights.get(key), Tensor) for key in keys):
        raise ValueError("these are not the weights of an atlas: they hold no template")
    size, coarse = (list(weights[key].shape[2:]) for key in keys[:2])
    stride = next(k for k in range(1, max(size) + 1) if [-(-n // k) for n in size] == coarse)
    settings = {"size": size, **read_description(weights[keys[2]]), "label_stride": stride}
    dense = "template.start.{}.weight"
    if dense.format(2) in weights:
        levels = [w for name, w in weights.items() if name.startswith("template.levels.") and name.endswith(".weight")]
        features = [levels[0].shape[1], *[w.shape[0] for w in levels]]
        settings |= {"hidden": len(weights[dense.format(0)]), "features": features}
    elif dense.format(0) in weights:
        settings["paper"] = True
    return settings
