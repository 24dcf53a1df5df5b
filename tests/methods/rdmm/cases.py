"""What several test files of this folder share."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.kernels import MultiGaussianKernel, gaussian_kernel
from custom_components.deformations.shooting import shoot
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.metric import (
    MetricSettings,
    RegionFlow,
    RegionSpecificMomentum,
    StationaryMetricMomentum,
)
from custom_components.methods.rdmm.objective import OMTPenalty, RangePenalty, RegionLoss

PAIR_KERNEL = MultiGaussianKernel((2.0, 4.0, 8.0), (0.2, 0.3, 0.5))
SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


kinds = pytest.mark.parametrize("kind", [RegionSpecificMomentum, StationaryMetricMomentum])


def metric(kind=RegionSpecificMomentum, quantity="momentum", **settings):
    return kind(PAIR_KERNEL, 1.0, 3, quantity=quantity, metric=MetricSettings(3.0, **settings))


def pair_loss(weight=0.001):
    return RegistrationLoss(MSE(), MeanEnergy(), weight, regularized="energy")


def region_loss(**options):
    return RegionLoss(
        pair_loss(),
        omt=OMTPenalty(PAIR_KERNEL.sigmas, squared=True),
        base_range=RangePenalty(PAIR_KERNEL.weights, squared=True),
        **options,
    )


def optimizer(deformation, iterations=4, levels=(2, 1), loss=None):
    return PairwiseOptimizer(
        deformation, loss or pair_loss(), levels=levels, iterations=[iterations] * len(levels), method="lbfgs"
    )


def pair(size, batch=1):
    return phantom_pair(size, batch=batch)["image"]


def trained_looking(network, seed=0):
    """A network whose slope is not small, so that its answer differs from place to place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("norm.weight", "slope")):
                parameter.fill_(0.1)
    return network


BASE = (0.2, 0.3, 0.5)
KERNEL = MultiGaussianKernel((0.08, 0.12, 0.2), BASE, padding="zeros")
VOXELS = MultiGaussianKernel((0.8, 1.5, 3.0), BASE, padding="zeros")
SIGMA = 0.06
GRIDS = [((40, 33), (1 / 39, 0.9 / 32)), ((15, 16, 13), (1 / 14, 0.9 / 15, 1 / 12))]
grids = pytest.mark.parametrize(("size", "spacing"), GRIDS, ids=["2-D", "3-D"])
ANISOTROPIC = (1.0, 0.7, 1.4)


def bump(size, spacing, centre, width):
    axes = torch.meshgrid(
        *[h * torch.arange(n, dtype=torch.float64) for n, h in zip(size, spacing, strict=True)], indexing="ij"
    )
    return torch.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=False)) / (2 * width**2))


def scene(size, spacing, amplitude=0.5):
    """A smooth momentum, and pre-weights of a disk or ball of one metric inside another."""
    centres = [(0.4, 0.45, 0.5), (0.6, 0.5, 0.45), (0.5, 0.4, 0.5)][: len(size)]
    heights = [amplitude, -0.7 * amplitude, 0.6 * amplitude]
    parts = [a * bump(size, spacing, c, 0.1) for a, c in zip(heights, centres, strict=False)]
    share = bump(size, spacing, (0.5, 0.4, 0.5), 0.15)
    inside, outside = (torch.tensor(w, dtype=torch.float64).sqrt() for w in ((0.7, 0.25, 0.05), (0.05, 0.15, 0.8)))
    shape = (1, 3, *[1] * len(size))
    h = share * inside.view(shape) + (1 - share) * outside.view(shape)
    return torch.stack(parts)[None], h / h.square().sum(1, keepdim=True).sqrt()


def random_case(size, batch=1, n=3, dtype=torch.float64):
    """Momentum and pre-weights in voxels, for a displacement of about half a voxel."""
    generator = torch.Generator().manual_seed(7)
    momentum = 2 * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)
    h = 0.2 + torch.rand(batch, n, *size, dtype=torch.float64, generator=generator)
    return momentum.to(dtype), (h / h.square().sum(1, keepdim=True).sqrt()).to(dtype)


def logits(size=(4, 5), batch=2, scale=1.0):
    return scale * torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


WIDE = MultiGaussianKernel((1.5, 2.5, 4.0), BASE, padding="zeros")
IMAGES = [((33, 28), (1.0, 0.8)), ((15, 16, 13), (1.0, 0.8, 1.3))]
images = pytest.mark.parametrize(("size", "spacing"), IMAGES, ids=["2-D", "3-D"])


def parameters_for(deformation, size, batch=1, amplitude=3.0, dtype=torch.float64):
    """A smooth momentum and, where they are wanted, smooth logits."""
    small, d = deformation.parameter_size(size), len(size)
    generator = torch.Generator().manual_seed(4)
    channels = deformation.parameter_channels(d)
    noise = torch.randn(batch, channels, *small, dtype=torch.float64, generator=generator)
    smooth = gaussian_kernel(1.5, padding="zeros")(noise)
    smooth = smooth / smooth.abs().amax()
    return torch.cat([amplitude * smooth[:, :d], 2 * smooth[:, d:]], 1).to(dtype)


def shot_of(momentum, pre_weights, kernel=KERNEL, *, weight_sigma=SIGMA, spacing=1.0, mask=None, **options):
    flow = RegionFlow(kernel, pre_weights, weight_sigma=weight_sigma, spacing=spacing, mask=mask)
    return shoot(flow, momentum, **options)


def tensors(shot):
    """The tensors of a shot that has an inverse: the maps, momentum and pre-weights at time 1, velocity and energy."""
    return shot.ddf, shot.inverse_ddf, *shot.state, shot.velocity, shot.energy
