"""What discriminators are shown: simulated deformations of an elastic body, images that labels align."""

from __future__ import annotations

import pytest
import torch

from custom_components.affine import affine_to_ddf
from custom_components.fields import jacobian_determinant, spatial_gradient, warp
from custom_components.methods.weakly_supervised.adversarial import Discriminator
from custom_components.methods.weakly_supervised.adversaries import (
    AlignedImages,
    SimulatedDeformations,
    elastic_displacement,
    moments_map,
)


@pytest.mark.parametrize("size", [(24, 32), (16, 24, 20)])
def test_a_displacement_solves_the_equation_of_elasticity(size):
    """mu Lap u + (mu + lambda) grad div u = -f, wave by wave, with mu = 1."""
    torch.manual_seed(0)
    d, poisson, axes = len(size), 0.3, tuple(range(2, len(size) + 2))
    forces = torch.randn(1, d, *size, dtype=torch.float64)
    u = elastic_displacement(forces, poisson, scale=0.0)
    waves = torch.meshgrid(*[torch.fft.fftfreq(n, dtype=torch.float64) * 2 * torch.pi for n in size], indexing="ij")
    k = torch.stack(waves)
    spectrum = torch.fft.fftn(u, dim=axes)
    both = 1 / (1 - 2 * poisson)  # (mu + lambda) / mu
    answer = k.square().sum(0) * spectrum + both * k * (k * spectrum).sum(1, keepdim=True)
    wanted = torch.fft.fftn(forces, dim=axes)
    wanted[(slice(None), slice(None), *[0] * d)] = 0  # a constant force moves the whole body
    inner = (slice(None), slice(None), *[slice(1, n // 2) for n in size])  # u is real: the last waves are cut
    torch.testing.assert_close(answer[inner], wanted[inner])


def test_a_body_of_poisson_ratio_near_a_half_keeps_its_volume():
    torch.manual_seed(0)
    forces, ratio = torch.randn(1, 2, 48, 48), {}
    for poisson in (0.0, 0.499):
        gradient = spatial_gradient(elastic_displacement(forces, poisson, 4.0))
        divergence = gradient[:, 0, 0] + gradient[:, 1, 1]
        ratio[poisson] = float(divergence.square().mean() / gradient.square().sum((1, 2)).mean())
    assert ratio[0.499] < 0.01 < 0.2 < ratio[0.0]


def test_simulated_deformations_do_not_fold():
    torch.manual_seed(0)
    simulated = SimulatedDeformations(largest=0.6)
    fields = torch.cat([simulated.draw((16, 24, 20)) for _ in range(20)])
    assert jacobian_determinant(fields).min() > 0
    assert fields.abs().max() > 0.3


def test_real_and_predicted_deformations_are_shown_alike_and_a_shift_is_not_seen():
    torch.manual_seed(0)
    targets, adversary = {"fixed": torch.rand(2, 1, 16, 24, 20)}, SimulatedDeformations()
    ddf = torch.rand(2, 3, 16, 24, 20, requires_grad=True)
    fake = adversary.fake({"ddf": ddf}, targets)
    assert fake.shape == adversary.real(targets).shape == (2, 9, 8, 12, 10)
    torch.testing.assert_close(adversary.fake({"ddf": ddf + 3}, targets), fake, atol=1e-5, rtol=1e-5)
    fake.square().sum().backward()
    assert ddf.grad.abs().max() > 0


def ellipse(size, centre, radii):
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij")
    return (sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) < 1).float()[None, None]


@pytest.mark.parametrize("size", [(40, 48), (40, 48, 44)])
def test_the_map_of_moments_takes_one_ellipse_to_the_other(size):
    d = len(size)
    moving, fixed = ellipse(size, (18, 26, 20)[:d], (8, 12, 9)[:d]), ellipse(size, (22, 20, 24)[:d], (11, 7, 8)[:d])
    warped = warp(moving, affine_to_ddf(moments_map(moving, fixed), size))
    overlap = float(2 * (warped * fixed).sum() / (warped.sum() + fixed.sum()))
    assert float(2 * (moving * fixed).sum() / (moving.sum() + fixed.sum())) < 0.65
    assert overlap > 0.93


def test_images_are_shown_aligned_by_labels_or_by_the_network():
    size = (24, 24)
    label = {"moving": ellipse(size, (9, 12), (4, 4)), "fixed": ellipse(size, (13, 12), (4, 4))}
    targets = {**label, "label_moving": label["moving"], "label_fixed": label["fixed"]}
    real = AlignedImages().real(targets)
    assert real.shape == (1, 2, *size)
    assert float((real[:, 0] - real[:, 1]).abs().mean()) < 0.01
    pred = {"warped": torch.rand(1, 1, *size)}
    torch.testing.assert_close(AlignedImages().fake(pred, targets), torch.cat([pred["warped"], label["fixed"]], 1))


def test_a_discriminator_finds_rough_fields_and_cannot_tell_simulated_ones_apart():
    torch.manual_seed(0)
    adversary, targets = SimulatedDeformations(), {"fixed": torch.zeros(8, 1, 32, 32)}
    accuracy = {}
    for name in ("rough", "simulated"):
        discriminator = Discriminator(2, 4, widths=(8, 16))
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
        right = []
        for _ in range(120):
            other = adversary.fake({"ddf": torch.randn(8, 2, 32, 32)}, targets)
            fake = other if name == "rough" else adversary.real(targets)
            real, fake = discriminator(adversary.real(targets)), discriminator(fake)
            loss = torch.nn.functional.softplus(-real).mean() + torch.nn.functional.softplus(fake).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right.append(float(((real > 0).float().mean() + (fake < 0).float().mean()) / 2))
        accuracy[name] = sum(right[-30:]) / 30
    assert accuracy["rough"] > 0.95
    assert accuracy["simulated"] == pytest.approx(0.5, abs=0.06)
