"""What several test files of this folder share."""

import pytest
import torch
from torch import nn

from custom_components.inference.prediction import NetworkPredictor
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import MSE
from custom_components.methods.hypermorph.inference import HyperInferer, SweepInferer
from custom_components.methods.hypermorph.network import HyperConv, HyperMorphUNet

SIZES = [(24, 21), (14, 17, 16)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def hyper_inferer(deformation, hyper=0.5, *, sweep=0, precision="float32", criterion=None, iterations=12, **options):
    """The inferer of the bundle's inference."""
    registration = RegistrationInferer(deformation, NetworkPredictor(precision), **options)
    inferer = HyperInferer(registration, deformation, hyper, criterion=criterion, iterations=iterations)
    return SweepInferer(inferer, deformation, sweep=sweep, precision=precision)


class Shift(nn.Module):
    """A network that moves images by hyper * strength voxels, hyper-parameter h along axis h, the rest along the first.

    It works in training and in evaluation mode, and its field depends on its weights, too.
    """

    def __init__(self, num_hyper=1, strength=4.0):
        super().__init__()
        self.num_hyper = num_hyper
        self.strength = nn.Parameter(torch.tensor(strength))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen = []

    def forward(self, image, hyper):
        d = image.ndim - 2
        self.seen.append([parameter.requires_grad for parameter in self.parameters()])
        shift = torch.cat([hyper, hyper.new_zeros(len(hyper), d - self.num_hyper)], 1) * self.strength * self.frozen
        return shift.view(-1, d, *[1] * d).expand(len(image), d, *image.shape[2:])


def blob(size, shift):
    """A smooth blob near the middle as the field `shift` warps it."""
    image = torch.ones(1, 1, *size)
    for axis, (n, s) in enumerate(zip(size, shift, strict=True)):
        x = torch.arange(n) - 0.55 * n + s
        image = image * torch.exp(-0.5 * (x / (0.2 * n)).square()).view(-1, *[1] * (len(size) - 1 - axis))
    return image


def shifted(size, *values, strength=4.0):
    """A pair whose true map is the field of `Shift` for these hyper-parameters, as `tune_hyper` takes it."""
    shift = [strength * value for value in values] + [0.0] * (len(size) - len(values))
    moving, fixed = blob(size, [0.0] * len(size)), blob(size, shift)
    return torch.cat([moving, fixed], 1), {"moving": moving, "fixed": fixed}


def alike(pred, targets):
    return MSE()(pred["warped"], targets["fixed"])


def make_network(spatial_dims, **kwargs):
    """A HyperMorph network with fields of about a voxel that clearly depend on its hyper-parameters."""
    torch.manual_seed(0)
    options = {"encoder_channels": (4, 6), "decoder_channels": (6, 4, 4), "hidden": (8, 8), "flow_std": 0.1, **kwargs}
    network = HyperMorphUNet(spatial_dims, **options)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, HyperConv):
                module.project.weight.mul_(5)
    return network
