"""Do the contestants of `benchmarks.bench` compute the same?"""

from __future__ import annotations

from torch import Tensor

from benchmarks.bench_cases import half, plain_warp, smooth_velocity, textured_image
from custom_components import fields
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, _SquaredLocalCorrelation

SIZE = (64, 80, 64)


def agreement(with_voxelmorph: bool) -> list[tuple[str, str]]:
    """Lines of what was compared and the difference."""
    a, velocity = textured_image(SIZE, 0), smooth_velocity(SIZE)
    # Half the same: neurite's NCC stops with an AssertionError on nearly equal images, where rounding lifts cc above 1.
    b = (a + textured_image(SIZE, 1)) / 2
    lines = lncc_agreement(a, b) + warp_agreement(a, velocity)
    return lines + (voxelmorph_agreement(a, b, velocity) if with_voxelmorph else [])


def lncc_agreement(a: Tensor, b: Tensor) -> list[tuple[str, str]]:
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    inside = (..., *[slice(8, n - 8) for n in SIZE])
    cc = _SquaredLocalCorrelation.apply(b, a, None, 9, 1e-5)
    exact = _SquaredLocalCorrelation.apply(b.double(), a.double(), None, 9, 0.0)
    theirs = LocalNormalizedCrossCorrelationLoss(kernel_size=9, reduction="none")
    monai_cc, monai_exact = -theirs(b, a), -theirs(b.double(), a.double())
    mean = (cc - monai_cc)[inside].abs().mean().item()
    return [
        (
            "LNCC: MONAI, cc per voxel inside, float64, our floor 0, largest difference",
            furthest(exact[inside], monai_exact[inside]),
        ),
        (
            "LNCC: MONAI, cc per voxel inside, float32, as used, mean and largest difference",
            f"{mean:.1e} {furthest(cc[inside], monai_cc[inside])}",
        ),
        ("LNCC: mean cc of the whole volume, ours and MONAI", f"{1 - LNCC(9)(b, a):.4f} {monai_cc.mean():.4f}"),
    ]


def warp_agreement(a: Tensor, velocity: Tensor) -> list[tuple[str, str]]:
    from monai.networks.blocks import DVF2DDF, Warp

    ddf = fields.integrate_velocity(velocity)
    half_resolution = StationaryVelocity()(fields.resize_field(velocity, half(SIZE)), SIZE)["ddf"]
    return [
        ("warp: MONAI Warp, largest difference", furthest(fields.warp(a, ddf), Warp(padding_mode="zeros")(a, ddf))),
        ("warp: torch grid_sample, largest difference", furthest(fields.warp(a, ddf), plain_warp(a, ddf))),
        (
            "integration: MONAI DVF2DDF with border padding, largest difference, voxels",
            furthest(ddf, DVF2DDF(7, padding_mode="border")(velocity)),
        ),
        (
            "integration: half against full resolution, mean difference over mean displacement, voxels",
            f"{(half_resolution - ddf).norm(dim=1).mean():.2f} / {ddf.norm(dim=1).mean():.2f}",
        ),
    ]


def voxelmorph_agreement(a: Tensor, b: Tensor, velocity: Tensor) -> list[tuple[str, str]]:
    import neurite
    import voxelmorph

    integrated = voxelmorph.nn.functional.integrate_vec(velocity, 7)
    return [
        (
            "LNCC: mean cc of the whole volume, ours and neurite",
            f"{1 - LNCC(9)(b, a):.4f} {neurite.nn.modules.NCC(9)(b, a).item():.4f}",
        ),
        (
            "gradient term: neurite SpatialGradient, difference",
            furthest(GradientPenalty()(velocity), neurite.nn.modules.SpatialGradient("l2")(velocity)),
        ),
        (
            "integration: voxelmorph, 7 steps, largest difference, voxels",
            furthest(fields.integrate_velocity(velocity), integrated),
        ),
    ]


def furthest(x: Tensor, y: Tensor) -> str:
    return f"{(x - y).abs().max().item():.1e}"
