"""Averages of many images, and votes of many label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from custom_components.cohorts import averages
from custom_components.cohorts.averages import averaged, majority, sharpened, voted


@pytest.fixture
def arrays(tmp_path):
    """Five images of two contrasts, one of them an outlier."""
    values = np.random.default_rng(0).random((5, 2, 6, 7, 4)).astype("f4")
    values[4] += 100
    paths = [tmp_path / f"{k}.npy" for k in range(5)]
    for path, value in zip(paths, values, strict=True):
        np.save(path, value)
    return paths, values


@pytest.mark.parametrize("at_once", [1, 2**26])
def test_the_mean_is_weighted_whatever_fits_into_memory(arrays, monkeypatch, at_once):
    monkeypatch.setattr(averages, "_AT_ONCE", at_once)
    paths, values = arrays
    weights = [1.0, 2.0, 1.0, 4.0, 0.5]
    found = averaged(paths, weights)
    mean = np.average(values, axis=0, weights=weights)
    np.testing.assert_allclose(found.image, mean, rtol=1e-5)
    np.testing.assert_allclose(found.deviation**2, np.average((values - mean) ** 2, axis=0, weights=weights), rtol=1e-4)


def test_the_median_does_not_see_an_outlier(arrays):
    paths, values = arrays
    np.testing.assert_allclose(averaged(paths, [1.0] * 5, "median").image, np.median(values, axis=0))
    np.testing.assert_allclose(averaged(paths[:4], [1.0] * 4, "median").image, np.median(values[:4], axis=0), rtol=1e-6)
    thrice = np.median(values[[0, 0, 0, 1, 2]], axis=0)
    np.testing.assert_allclose(averaged(paths[:3], [3.0, 1.0, 1.0], "median").image, thrice)


def test_a_symmetric_average_is_that_of_people_and_their_mirror_images(arrays):
    paths, values = arrays
    both = np.concatenate([values, values[:, :, ::-1]])
    np.testing.assert_allclose(averaged(paths, [1.0] * 5, symmetric=True).image, both.mean(0), rtol=1e-5)


def test_sharpening_strengthens_edges_and_keeps_the_mean():
    image = torch.zeros(1, 32, 32)
    image[:, 8:24, 8:24] = 1
    image = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    sharp = sharpened(image, 0.5)
    assert float(sharp.diff(dim=1).abs().max()) > 1.1 * float(image.diff(dim=1).abs().max())
    assert float(sharp.mean()) == pytest.approx(float(image.mean()), abs=0.02)
    assert sharpened(image, 0) is image


def test_votes_are_weighted_shares_of_labels(tmp_path):
    maps = np.array([[[0, 5, 5]], [[0, 5, 9]], [[0, 9, 9]]], dtype="i4")[:, None].repeat(2, axis=2)
    paths = [tmp_path / f"{k}.npy" for k in range(3)]
    for path, value in zip(paths, maps, strict=True):
        np.save(path, value)
    labels, shares = voted(paths, [1.0, 1.0, 2.0])
    assert labels == [0, 5, 9]
    np.testing.assert_allclose(shares[:, 0, :], [[1, 0, 0], [0, 0.5, 0.25], [0, 0.5, 0.75]])
    assert majority(labels, shares)[0, 0].tolist() == [0, 5, 9]
