"""What stands outside an image, and which of its values are air or padding."""

from __future__ import annotations

import numpy as np
import pytest

from custom_components.space.background import air_of_ct, background_value, without_air


def ct(padding: int | None = None, noise: float = 0.0, size: tuple[int, ...] = (40, 40, 12)) -> np.ndarray:
    """A cylinder of tissue in air, within a circle beyond which there is padding."""
    rng = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size[:2]], indexing="ij"))
    radius = np.broadcast_to(np.hypot(*x).reshape(*size[:2], *[1] * (len(size) - 2)), size)
    image = np.where(radius < 0.6, rng.integers(0, 100, size), -1000 + noise * rng.standard_normal(size))
    return (image if padding is None else np.where(radius > 0.95, padding, image)).round().astype(np.int16)


@pytest.mark.parametrize("size", [(40, 40), (40, 40, 12), (1, 40, 40)])
@pytest.mark.parametrize(("padding", "expected"), [(None, -1000), (-2000, -2000), (-3024, -3024), (-32768, -32768)])
def test_the_outside_of_a_ct_is_its_air_or_its_padding(
    padding: int | None, expected: int, size: tuple[int, ...]
) -> None:
    shape = size if size[0] > 1 else size[1:]
    assert background_value(ct(padding, size=shape).reshape(size)) == expected


def test_noisy_air_is_found_and_other_images_keep_zero() -> None:
    rng = np.random.default_rng(0)
    assert background_value(ct(noise=15)) == pytest.approx(-1000, abs=3)
    head = np.pad(rng.random((12, 12, 12)), 4) * 900
    phases = rng.integers(-4096, 4096, (20, 20, 20))
    for image in (head, head + rng.random(head.shape), phases, rng.standard_normal((9, 9)), head - 400 * (head > 0)):
        assert background_value(image.astype(np.float32)) == 0
        assert air_of_ct(image) is None
        assert without_air(image) is image
    assert background_value(255 - (head > 450) * 200.0) == 255


def test_padding_and_air_do_not_take_the_range_from_tissue() -> None:
    plain = without_air(ct())
    for padding in (-2000, -3024, -32768):
        assert np.array_equal(without_air(ct(padding)), plain)
    assert plain.min() == np.percentile(ct()[ct() > -900], 1).astype(np.int16)
    assert plain.max() == ct().max()
