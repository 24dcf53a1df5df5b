"""HyperMorph: a hypernetwork that makes the weights of a registration U-Net from the objective's hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.blocks import pad_to_multiple
from ...networks.voxelmorph_unet import VoxelMorphUNet


class HyperConv(nn.Module):
    """A convolution whose kernel and bias depend on a code, sample by sample.

    With `generated="kernels"`, kernel = weight + P code and bias + Q code: every entry has a projection of its own
    (HyperMorph). With `"channels"` the code scales the kernel's inputs and outputs and shifts the bias,
    kernel_oi = (1 + (P code)_o) (1 + (R code)_i) weight_oi: some hundred times fewer parameters.

    `weight` and `bias` have an ordinary convolution's names, shapes and initial values, and the projections start
    small: at first the layer is that convolution whatever the code, with its scale and its gradients.

    Args:
        convolution: the ordinary convolution (2-D or 3-D) whose place it takes.
        code_size: length of the code.
        generated: "kernels" or "channels".
        spread: initial size of the code's influence, as a share of the kernel.
    Raises:
        ValueError: for another `generated`.
    """

    def __init__(
        self, convolution: nn.Conv2d | nn.Conv3d, code_size: int, generated: str = "kernels", spread: float = 0.1
    ) -> None:
        super().__init__()
        if generated not in ("kernels", "channels"):
            raise ValueError(f"expected generated kernels or channels, got {generated!r}")
        assert convolution.bias is not None
        self.weight, self.bias = convolution.weight, convolution.bias
        self.stride: list[int] = [int(n) for n in convolution.stride]
        self.padding: list[int] = [int(n) for n in convolution.padding]
        self.is_3d = isinstance(convolution, nn.Conv3d)
        self.full = generated == "kernels"
        n_out, n_in = self.weight.shape[:2]
        self.project = nn.Linear(code_size, self.weight.numel() + n_out if self.full else n_in + 2 * n_out, bias=False)
        scale = float(self.weight.detach().square().mean().sqrt())
        # The bias starts at 0 and shares the kernel's scale.
        std = torch.full((self.project.out_features, 1), spread * scale)
        if not self.full:
            std[: n_in + n_out] = spread
        with torch.no_grad():
            self.project.weight.normal_().mul_(std)

    def generate(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels (K, n_out, n_in, *window) and biases (K, n_out) for codes (K, code_size)."""
        change = self.project(code.to(self.project.weight.dtype)).to(self.weight.dtype)
        n_out, n_in = self.weight.shape[0], self.weight.shape[1]
        bias = self.bias + change[:, change.shape[1] - n_out :]
        window = [1] * (self.weight.dim() - 2)
        if self.full:
            return self.weight + change[:, : self.weight.numel()].reshape([-1] + list(self.weight.shape)), bias
        inputs = (1 + change[:, :n_in]).reshape([-1, 1, n_in] + window)
        outputs = (1 + change[:, n_in : n_in + n_out]).reshape([-1, n_out, 1] + window)
        return self.weight * outputs * inputs, bias

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Convolve each sample with the kernel of its code; one code serves all samples, one sample all codes.

        Args:
            x: shape (B, n_in, *S).
            code: shape (K, code_size), K = B, or 1, or any number if B = 1.
        Returns:
            Shape (max(B, K), n_out, *S').
        """
        kernels, biases = self.generate(code)
        if kernels.shape[0] == 1:
            return self.convolve(x, kernels[0], biases[0], 1)
        # On CPUs a loop is faster than groups, and takes the fast memory layout.
        return self.grouped(x, kernels, biases) if x.is_cuda else self.one_by_one(x, kernels, biases)

    def grouped(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        """One convolution with a group for each sample."""
        num = kernels.shape[0]
        size = list(x.shape[2:])
        x = x.expand([num, -1] + size).reshape([1, num * x.shape[1]] + size)
        y = self.convolve(x, kernels.flatten(0, 1), biases.flatten(), num)
        return y.reshape([num, -1] + list(y.shape[2:]))

    def one_by_one(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        images, each, shifts = x.split(1), kernels.unbind(), biases.unbind()
        last = len(images) - 1
        return torch.cat([self.convolve(images[min(i, last)], each[i], shifts[i], 1) for i in range(len(each))])

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor, groups: int) -> Tensor:
        if self.is_3d:
            return F.conv3d(x, kernel, bias, self.stride, self.padding, groups=groups)
        return F.conv2d(x, kernel, bias, self.stride, self.padding, groups=groups)


class HyperBlock(nn.Sequential):
    """A `HyperConv` and its activation."""

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        assert code is not None
        return self[1](self[0](x, code))


class PlainBlock(nn.Sequential):
    """An ordinary convolution and its activation, among blocks that are given a code."""

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        return self[1](self[0](x))


class HyperMorphUNet(VoxelMorphUNet):
    """The VoxelMorph U-Net with weights made by a hypernetwork: one network for every value of the hyper-parameters.

    The hyper-parameters h in [0, 1], entered as (h, 1 - h) so that the input's length hardly depends on them, pass
    fully connected layers with ReLU; the last one's output, divided by the root of its length, is the code from which
    each convolution makes its kernel and bias (`HyperConv`). The constant part of every projection is an
    ordinary `VoxelMorphUNet` under its usual names: weights of one are a start for training (the rest is `fresh`), and
    `plain_weights` gives back such weights for a fixed h.

    The paper's hypernetwork is `generated="kernels"`, with these layers 21.3 M parameters in 3-D; "channels" has 0.4 M.

    Args:
        spatial_dims, **unet: of `VoxelMorphUNet`; no log variance.
        num_hyper: number H of hyper-parameters.
        hidden: sizes of the hypernetwork's layers.
        generated: what the hypernetwork makes, "channels" or "kernels", see `HyperConv`.
        hyper_encoder: False leaves the encoder ordinary: its features serve all values of the hyper-parameters.
        default: value of every hyper-parameter if none is given.
        zero_at_one: index of the hyper-parameter that leaves nothing but the regularisation at 1: there the best field
            is zero, and need not be learned, for the field is multiplied by 1 - h^8 (0.57 at 0.9, 0.99 at 0.56). None:
            it is learned, slowly where motion is smooth, for that hardly costs.

    Shapes: input (B, 2C, *S), hyper (K, H) with K = B, or 1, or any number if B = 1; output (max(B, K), D, *S').
    Raises:
        ValueError: without hyper-parameters or hidden layers, with a log variance, or for a `zero_at_one` beyond the
            last.
    References: Hoopes et al., IPMI 2021; MELBA 2022 (arXiv 2203.16680). Encoding and constant part are ours,
        against the dependence on the input's magnitude that arXiv 2304.07645 reports.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        num_hyper: int = 1,
        hidden: Sequence[int] = (64, 64, 64, 64),
        generated: str = "channels",
        hyper_encoder: bool = True,
        default: float = 0.5,
        zero_at_one: int | None = None,
        **unet: Any,
    ) -> None:
        super().__init__(spatial_dims, **unet)
        if num_hyper < 1 or not hidden:
            raise ValueError(f"expected a hyper-parameter and a hidden layer, got {num_hyper} and {tuple(hidden)}")
        if len(self.log_variance):
            raise ValueError("a hypernetwork for the log variance is not supported; leave log_variance out")
        if zero_at_one is not None and not 0 <= zero_at_one < num_hyper:
            raise ValueError(f"expected zero_at_one below {num_hyper}, got {zero_at_one}")
        self.num_hyper, self.default, self.hyper_encoder = num_hyper, float(default), hyper_encoder
        self.zero_at_one = -1 if zero_at_one is None else int(zero_at_one)
        self.code_scale = 1 / math.sqrt(hidden[-1])
        layers: list[nn.Module] = []
        size = 2 * num_hyper
        for width in hidden:
            linear = nn.Linear(size, width)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(inplace=True)]
            size = width
        self.hypernetwork = nn.Sequential(*layers)

        def hyper(blocks: nn.ModuleList) -> nn.ModuleList:
            return nn.ModuleList(HyperBlock(HyperConv(block[0], size, generated), block[1]) for block in blocks)  # type: ignore[index]

        plain = nn.ModuleList(PlainBlock(*block.children()) for block in self.encoder)
        self.encoder = hyper(self.encoder) if hyper_encoder else plain
        self.decoder, self.second, self.final = hyper(self.decoder), hyper(self.second), hyper(self.final)
        self.flow = HyperConv(self.flow, size, generated)  # type: ignore[assignment]

    def forward(self, image: Tensor, hyper: Tensor | None = None) -> Tensor:
        hyper = self.values(hyper, image)
        if image.shape[0] != hyper.shape[0] and image.shape[0] != 1 and hyper.shape[0] != 1:
            raise ValueError(f"expected {image.shape[0]} or 1 hyper-parameters for the images, got {hyper.shape[0]}")
        code = self.code(hyper)
        return self.scale(self.decode_with(self.encode_with(image, code), list(image.shape[2:]), code), hyper)

    # The loops of the plain network with a code for each block. TorchScript has no way to hand them in from outside,
    # and the plain network should not know about codes.
    def encode_with(self, image: Tensor, code: Tensor) -> list[Tensor]:
        """As `encode`, with each block's weights made from the code."""
        x = pad_to_multiple(image, self.multiple)
        features: list[Tensor] = []
        if self.strided:
            features.append(x)
        for block in self.encoder:
            x = block(x, code)
            features.append(x)
            x = self.pool(x)
        if self.strided:
            features.pop()
        features.append(x)
        return features

    def decode_with(self, features: list[Tensor], size: list[int], code: Tensor) -> Tensor:
        """As `decode`. With one image and several codes, a field for each code."""
        x = features[-1]
        for level, block in enumerate(self.decoder):
            x = block(x, code)
            if level == len(self.decoder) - 1:
                for second in self.second:
                    x = second(x, code)
            if level < self.num_skips:
                x = self.enlarge(x, features[len(features) - 2 - level])
        for block in self.final:
            x = block(x, code)
        return self.cropped(self.flow(x, code), size)

    def values(self, hyper: Tensor | None, like: Tensor) -> Tensor:
        """Hyper-parameters (K, H), the default ones if there are none, of an image's type and on its device.

        Raises:
            ValueError: for another number of them.
        """
        if hyper is None:
            hyper = torch.full([1, self.num_hyper], self.default)
        if hyper.dim() != 2 or hyper.shape[1] != self.num_hyper:
            raise ValueError(
                f"expected {self.num_hyper} hyper-parameters for each image, got values of shape {list(hyper.shape)}"
            )
        return hyper.to(like.device, like.dtype)

    def scale(self, field: Tensor, hyper: Tensor) -> Tensor:
        """The field (B, D, *S), zero where its hyper-parameter (B or 1, H) says so."""
        if self.zero_at_one < 0:
            return field
        factor = 1 - hyper[:, self.zero_at_one].pow(8)
        return field * factor.reshape([-1] + [1] * (field.dim() - 1))

    def code(self, hyper: Tensor) -> Tensor:
        """The hypernetwork's last layer for hyper-parameters (K, H): (K, code size)."""
        return self.hypernetwork(torch.cat([hyper, 1 - hyper], 1)) * self.code_scale

    @torch.jit.unused
    def each(self, image: Tensor, hyper: Tensor) -> Iterator[Tensor]:
        """The field for each row of hyper (K, H) in turn; an ordinary encoder runs once for all."""
        features = None if self.hyper_encoder else self.encode(image)
        for row in self.values(hyper, image).split(1):
            code = self.code(row)
            found = self.encode_with(image, code) if features is None else features
            yield self.scale(self.decode_with(found, list(image.shape[2:]), code), row)

    @torch.jit.unused
    @torch.no_grad()
    def plain_weights(self, hyper: Sequence[float]) -> dict[str, Tensor]:
        """State dict of the `VoxelMorphUNet` that this network is at fixed hyper-parameters."""
        row = self.values(torch.tensor([list(hyper)]), next(self.parameters()))
        code = self.code(row)
        result: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, HyperConv):
                kernels, biases = module.generate(code)
                if name == "flow":
                    kernels, biases = self.scale(kernels, row), self.scale(biases, row)
                result |= {f"{name}.weight": kernels[0], f"{name}.bias": biases[0]}
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                result |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
        return result
