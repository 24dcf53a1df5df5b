"""Other packages' operations for `gpu_speed`: MONAI's, and voxelmorph's and FireANTs' where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers_settings import PEERS

Cases = dict[str, Callable[[], object]]


def installed(package: str) -> bool:
    """Whether a package is there and can be imported."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        importlib.import_module(package)
    except Exception as error:  # what else it lacks is its own affair
        print(f"{package} is there, but cannot be imported: {error}", flush=True)
        return False
    return True


def operations(moving: Tensor, fixed: Tensor, field: Tensor) -> Cases:
    """Names and calls that give a tensor: warps and integrations of the field, and LNCC of the warped image."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import DVF2DDF, Warp

    warp, integrate = Warp(padding_mode="zeros"), DVF2DDF(num_steps=7)
    lncc = LocalNormalizedCrossCorrelationLoss(kernel_size=9)
    cases: Cases = {
        "MONAI warp": lambda: warp(moving, field),
        "MONAI integrate 7 steps": lambda: integrate(field),
        "MONAI warp + LNCC": lambda: lncc(warp(moving, field), fixed),
    }
    if installed("voxelmorph"):
        modules: Any = importlib.import_module("voxelmorph.nn.modules")
        transform, exponential = modules.SpatialTransformer(), modules.IntegrateVelocityField(steps=7)
        cases["voxelmorph warp"] = lambda: transform(moving, field)
        cases["voxelmorph integrate 7 steps"] = lambda: exponential(field)
    return cases


def fireants(moving: Tensor, fixed: Tensor) -> Callable[[], object]:
    """A pair by FireANTs' greedy registration: 200, 100 and 50 iterations and the smoothing of `peers_settings`."""
    import SimpleITK as sitk

    images: Any = importlib.import_module("fireants.io")
    greedy: Any = importlib.import_module("fireants.registration.greedy")
    device = "cuda" if moving.device.type == "cuda" else "cpu"
    pair = [
        images.BatchedImages([images.Image(sitk.GetImageFromArray(image[0, 0].cpu().numpy()), device=device)])
        for image in (fixed, moving)
    ]

    def call() -> None:
        greedy.GreedyRegistration([4, 2, 1], [200, 100, 50], *pair, **PEERS["FireANTs"].settings).optimize()
        if device == "cuda":
            torch.cuda.synchronize()

    return call
