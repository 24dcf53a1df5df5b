"""What several test files of this folder share."""

import pytest
import torch
from torch import nn

from custom_components.deformations.kernels import HelmholtzKernel, gaussian_kernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.quicksilver.inference import DropoutSamplesInferer, PatchPredictor
from custom_components.methods.quicksilver.network import QuicksilverNetwork, Target

KERNEL = HelmholtzKernel(9.0, 1.0, power=2)
OTHER = HelmholtzKernel(4.0, 1.0, power=2)
strides = pytest.mark.parametrize("stride", [1, 2])
dimensions = pytest.mark.parametrize("dims", [2, 3], ids=["2-D", "3-D"])


def random_image(size, batch=1, seed=0, channels=2):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def strided(image, stride):
    """Every so many voxels along each axis."""
    return image[(slice(None), slice(None), *[slice(None, None, stride)] * (image.ndim - 2))]


def make(dims=2, features=2, stride=1, seed=0, last=3.0, **options):
    """A network whose answers are not near 0."""
    torch.manual_seed(seed)
    target = Target(**{key: options.pop(key) for key in ("kernel", "spacing", "quantity") if key in options})
    network = QuicksilverNetwork(dims, features, stride, target=target, **options).eval()
    for decoder in network.decoders:
        nn.init.normal_(decoder.head.weight, std=last)
    return network


PATCH = 7


def vector_momentum(stride=2, kernel=KERNEL, **options):
    return VectorMomentum(kernel, spacing=1.0, stride=stride, num_steps=2, **options)


WHOLE = (2 * PATCH, 2 * PATCH)  # images of one patch, with stride 2


class Local(nn.Module):
    """Momenta from the images' intensities at the same place: patches of it make up the whole."""

    def __init__(self, stride=2, scale=4.0):
        super().__init__()
        self.stride, self.scale = stride, scale

    def forward(self, image):
        moving, fixed = strided(image, self.stride).chunk(2, 1)
        rest = [moving * fixed] * (image.ndim - 3)
        return self.scale * torch.cat([fixed - moving.square(), *rest], 1)


def smooth_pair(size, batch=1, seed=0):
    """Textured images above 0."""
    image = gaussian_kernel(1.5)(torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed)))
    return 0.5 + 0.15 * image / image.std()


def momentum_inferer(stride=2, deformation=None, **options):
    """The inferer of the bundle, with the options of all its parts."""
    registration = {key: options.pop(key) for key in ("inverse", "refinement") if key in options}
    samples = {key: options.pop(key) for key in ("samples", "seed") if key in options}
    predict = PatchPredictor(**{"patch": PATCH, "step": 5, **options})
    deformation = vector_momentum(stride) if deformation is None else deformation
    return DropoutSamplesInferer(RegistrationInferer(deformation, predict, **registration), **samples)


wholes = pytest.mark.parametrize("size", [(20, 26), (17, 25), (14, 16, 18)], ids=["2-D", "odd", "3-D"])
