"""Schemes find the same map whatever scale a scanner has, and white matter where it is."""

from __future__ import annotations

import numpy as np
import pytest

from custom_components.preparation import intensities


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """Intensities of CSF, grey and white matter of a T1w image, and where white matter is."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(m, s, n) for m, s, n in ((200, 40, 8000), (500, 45, 25000), (800, 35, 22000))])


def mapped(name: str, values: np.ndarray) -> np.ndarray:
    scale = [100 * p / 99 for p in intensities.LANDMARKS]
    scheme = {"nyul": lambda v: intensities.nyul(v, scale)}.get(name) or getattr(intensities, name, None)
    if scheme is None:
        weights = getattr(intensities, f"white_matter_by_{name}")(values)
        return intensities.tissue(values, weights)(values)
    return scheme(values)(values)


@pytest.mark.parametrize("name", ["percentile", "zscore", "whitestripe", "nyul", "fcm", "gmm"])
def test_the_result_does_not_depend_on_the_scanners_scale(name, brain):
    shift = 0.0 if name in ("fcm", "gmm") else 70.0
    np.testing.assert_allclose(
        mapped(name, 3 * brain + shift), mapped(name, brain), atol=2e-3 * np.ptp(mapped(name, brain))
    )


def test_zscore_has_mean_0_and_deviation_1(brain):
    result = mapped("zscore", brain)
    assert abs(result.mean()) < 1e-12
    assert result.std() == pytest.approx(1)


def test_percentiles_are_in_0_to_1(brain):
    result = mapped("percentile", brain)
    assert (result.min(), result.max()) == (0, 1)


def test_whitestripe_puts_white_matter_at_0(brain):
    assert abs(mapped("whitestripe", brain)[33000:].mean()) < 0.3


def test_of_other_contrasts_whitestripe_takes_the_largest_mode(brain):
    dark = 1000 - brain[8000:]  # white matter is dark, and there is more of grey matter
    values = np.concatenate([dark, dark[25000:], dark[25000:]])
    assert abs(intensities.whitestripe(values, "T2w")(values[25000:]).mean()) < 1


@pytest.mark.parametrize("name", ["fcm", "gmm"])
def test_tissue_schemes_put_white_matter_at_1(name, brain):
    assert mapped(name, brain)[33000:].mean() == pytest.approx(1, abs=0.02)


def test_the_landmarks_of_nyul_go_to_the_standard_scale(brain):
    scale = intensities.standard_scale([intensities.landmarks(brain), intensities.landmarks(np.sqrt(brain.clip(1)))])
    assert scale[0] == 0
    assert scale[-1] == pytest.approx(100)
    result = intensities.nyul(brain, scale)(np.array(intensities.landmarks(brain)))
    np.testing.assert_allclose(result, scale, atol=0.05)


@pytest.mark.parametrize("name", ["percentile", "zscore", "whitestripe", "nyul", "fcm"])
def test_a_brain_of_one_value_is_refused(name):
    with pytest.raises(ValueError, match="the brain is constant, or its mask is wrong"):
        mapped(name, np.zeros(100))


def test_the_foreground_is_what_is_not_air():
    image = np.zeros((20, 20))
    image[5:15, 5:15] = 100
    image += np.random.default_rng(0).normal(0, 3, image.shape)
    np.testing.assert_array_equal(intensities.foreground(image), image > 50)
