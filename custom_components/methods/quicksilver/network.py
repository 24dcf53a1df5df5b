"""Quicksilver's patch network: from a patch of the moving and of the fixed image to the momentum there."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...files import read_state
from ...networks.blocks import convolution, initialize_layers, transposed_convolution


@dataclass(frozen=True)
class Target:
    """What a network predicts: something else for another kernel or other images' spacing.

    Args:
        kernel: what the momenta belong to; its `repr` counts. Empty if it is not known.
        spacing: of the images, in the kernel's unit; None if it is not known.
        quantity: "momentum" or, to compare, another field of the deformation.
    """

    kernel: object = ""
    spacing: float | Sequence[float] | None = None
    quantity: str = "momentum"


class QuicksilverNetwork(nn.Module):
    """Two encoders, one for each image, and a decoder for each component of the momentum (Quicksilver).

    Encoder levels of three convolutions and a strided one, to a fourth of the patch; the two images' features are
    concatenated; decoder levels of a transposed convolution and three more. PReLU with one slope after each layer but
    the last. With the defaults of the paper (features 64, stride 1, no skips) 21.83 M parameters in 3-D.
    The two encoders start with equal weights and the decoders see the difference of their features, so that training
    begins without momentum for equal images.

    What the momentum means depends on the kernel it was made with and on the images' spacing, and the network is of no
    use with others: the `target` travels with the weights, and loading others' raises an error. So do
    `dropout`, which is taken from them if it is 0 here, and `corrects`, the `digest` of the network whose predictions
    this one corrects (empty for none).

    Args:
        spatial_dims: 2 or 3.
        features: of the first level.
        stride: image voxels per voxel of the momentum's grid: blocks of `stride` along each axis become channels.
        skips: the decoders' levels see both encoders' features of the same size, too; the paper has none.
        normalized: batch normalisation after each convolution but the last; the paper has none.
        dropout: probability, after each convolution of width 3 but the last; 0 for the deterministic form.
        target: what is predicted.
    Shapes: input (B, 2, *P), moving then fixed, each side `stride` * (4 k + 3) voxels; output (B, D, *P / stride).
    Raises:
        ValueError: for a setting that is impossible.
    References: Yang et al., Quicksilver, NeuroImage 158, 2017; stride is ours.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        features: int = 64,
        stride: int = 1,
        skips: bool = False,
        normalized: bool = False,
        dropout: float = 0.0,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or features < 1 or stride < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "expected spatial_dims 2 or 3, features and stride of at least 1, dropout in [0, 1), "
                f"got {spatial_dims}, {features}, {stride}, {dropout}"
            )
        self.spatial_dims, self.stride, self.dropout = spatial_dims, stride, float(dropout)
        target = target or Target()
        self.kernel, self.quantity, self.corrects = str(target.kernel), target.quantity, ""
        self.spacing = list(target.spacing) if isinstance(target.spacing, Sequence) else target.spacing
        n = features
        layers = _Layers(spatial_dims, dropout, normalized)
        self.moving, self.fixed = (_Encoder(layers, stride**spatial_dims, n) for _ in range(2))
        self.decoders = nn.ModuleList([_Decoder(layers, n, skips) for _ in range(spatial_dims)])
        initialize_layers(self, 0.25)
        for decoder in self.decoders:
            assert isinstance(decoder, _Decoder)
            decoder.see_differences()
        self.fixed.load_state_dict(self.moving.state_dict())

    def forward(self, image: Tensor) -> Tensor:
        moving, fixed = (3 * image - 1).chunk(2, 1)  # from [0, 1]
        m1, m2, m3 = self.moving(_blocks(moving, self.stride))
        f1, f2, f3 = self.fixed(_blocks(fixed, self.stride))
        levels = [torch.cat([m1, f1], 1), torch.cat([m2, f2], 1), torch.cat([m3, f3], 1)]
        return torch.cat([decoder(levels) for decoder in self.decoders], 1)

    def description(self) -> dict[str, object]:
        """What the weights are for."""
        settings = {
            "kernel": self.kernel,
            "quantity": self.quantity,
            "corrects": self.corrects,
            "spacing": self.spacing,
        }
        return {**settings, "dropout": self.dropout}

    def digest(self) -> str:
        """A checksum of the weights, by which a correction network knows what it corrects."""
        code = 0
        for value in (*self.parameters(), *self.buffers()):
            code = zlib.crc32(value.detach().cpu().numpy().tobytes(), code)
        return f"{code:08x}"

    def get_extra_state(self) -> Tensor:
        """The description as bytes: a tensor, as everything else in a file of weights."""
        return torch.tensor(list(json.dumps(self.description()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        found = json.loads(bytes(state.tolist()))
        for name in ("kernel", "quantity"):
            wanted = self.description()[name]
            if wanted and found[name] != wanted:
                raise RuntimeError(f"the weights predict the {found['quantity']} of {found['kernel']}, not {wanted}")
        if self.corrects and found["corrects"] and self.corrects != found["corrects"]:
            raise RuntimeError("the weights correct the predictions of other weights")
        spacing = found.get("spacing")
        if None not in (self.spacing, spacing) and self.spacing != spacing:
            raise RuntimeError(f"the weights are for images of a spacing of {spacing}, not {self.spacing}")
        self.kernel, self.quantity = found["kernel"], found["quantity"]
        self.spacing = self.spacing if spacing is None else spacing
        self.corrects = found["corrects"] or self.corrects
        self.dropout = self.dropout or found["dropout"]
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.dropout


def load_network(network: nn.Module, path: str | os.PathLike[str] | None) -> QuicksilverNetwork | None:
    """Another network like this one, of any number of features, with a file's weights.

    None for no path or "none", and where the network is not Quicksilver's (a registration without one).

    Raises:
        ValueError: for weights of another network.
    """
    if path is None or str(path) == "none" or not isinstance(network, QuicksilverNetwork):
        return None
    device = next(network.parameters()).device
    weights = read_state(path)
    if "moving.level_1.0.weight" not in weights:
        raise ValueError(f"{path}: these are not the weights of a Quicksilver network")
    features, normalized = weights["moving.level_1.0.weight"].shape[0], "moving.level_1.1.running_mean" in weights
    skips = weights["decoders.0.level_1.0.weight"].shape[1] > 2 * features
    target = Target(network.kernel, network.spacing, network.quantity)
    other = QuicksilverNetwork(network.spatial_dims, features, network.stride, skips, normalized, target=target)
    other.load_state_dict(weights)
    return other.to(device).eval()


def load_predictor(network: QuicksilverNetwork, path: str | os.PathLike[str] | None) -> QuicksilverNetwork | None:
    """The network whose predictions `network` is to correct, which is noted in it; see `load_network`."""
    predictor = load_network(network, path)
    network.corrects = "" if predictor is None else predictor.digest()
    return predictor


@dataclass(frozen=True)
class _Layers:
    """Makes the layers that encoders and decoders have in common."""

    dims: int
    dropout: float
    normalized: bool

    def level(self, *widths: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += self.activated(convolution(self.dims, inputs, outputs))
            layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers)

    def activated(self, layer: nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> list[nn.Module]:
        if not self.normalized:
            return [layer, nn.PReLU()]
        norm = nn.BatchNorm2d if self.dims == 2 else nn.BatchNorm3d
        return [layer, norm(layer.out_channels), nn.PReLU()]


class _Encoder(nn.Module):
    """One image's features at full, half and a fourth of its resolution: n, 2 n and 2 n."""

    def __init__(self, make: _Layers, inputs: int, n: int) -> None:
        super().__init__()
        self.level_1 = make.level(inputs, n, n, n)
        self.down_1 = nn.Sequential(*make.activated(convolution(make.dims, n, n, 2, stride=2)))
        self.level_2 = make.level(n, 2 * n, 2 * n, 2 * n)
        self.down_2 = nn.Sequential(*make.activated(convolution(make.dims, 2 * n, 2 * n, 2, stride=2)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.level_1(image)
        second = self.level_2(self.down_1(first))
        return first, second, self.down_2(second)


class _Decoder(nn.Module):
    """One component of the momentum from both encoders' features, moving then fixed at each level."""

    def __init__(self, make: _Layers, n: int, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.up_2 = nn.Sequential(*make.activated(transposed_convolution(make.dims, 4 * n, 4 * n, padding=1)))
        self.level_2 = make.level(8 * n if skips else 4 * n, 4 * n, 4 * n, 2 * n)
        self.up_1 = nn.Sequential(*make.activated(transposed_convolution(make.dims, 2 * n, 2 * n, 3, padding=1)))
        self.level_1 = make.level(4 * n if skips else 2 * n, 2 * n, 2 * n)
        self.head = convolution(make.dims, 2 * n, 1)

    def see_differences(self) -> None:
        """Initial weights: layers that see both images' features take the difference; the result is nearly zero."""
        n = self.head.weight.shape[1] // 2
        with torch.no_grad():
            weight = _first_weight(self.up_2)
            weight[2 * n :] = -weight[: 2 * n]
            if self.skips:
                for level, width in ((self.level_2, 2 * n), (self.level_1, n)):
                    weight = _first_weight(level)
                    weight[:, -width:] = -weight[:, -2 * width : -width]
        nn.init.normal_(self.head.weight, std=1e-3)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.up_2(features[2])
        x = self.up_1(self.level_2(torch.cat([x, features[1]], 1) if self.skips else x))
        return self.head(self.level_1(torch.cat([x, features[0]], 1) if self.skips else x))


def _first_weight(layers: nn.Sequential) -> Tensor:
    weight = layers[0].weight
    assert isinstance(weight, Tensor)
    return weight


def _blocks(image: Tensor, stride: int) -> Tensor:
    """Blocks of `stride` voxels along each axis as channels."""
    if stride == 1:
        return image
    b, c, s = image.shape[0], image.shape[1], stride
    h, w = image.shape[2] // s, image.shape[3] // s
    if image.dim() == 4:
        return image.reshape(b, c, h, s, w, s).permute(0, 1, 3, 5, 2, 4).reshape(b, c * s * s, h, w)
    d = image.shape[4] // s
    blocks = image.reshape(b, c, h, s, w, s, d, s).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(b, c * s * s * s, h, w, d)
