"""Schemes that make intensities comparable between scans, each a map of intensities found from the voxels of a brain.

Convention: `values` (N,) are the intensities inside of the brain. White matter is the brightest tissue of a T1w image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Map = Callable[[np.ndarray], np.ndarray]

SCHEMES = ("none", "percentile", "zscore", "whitestripe", "nyul", "fcm", "gmm")

LANDMARKS = (1.0, *range(10, 91, 10), 99.0)  # percentiles that the scheme of Nyul compares

_BINS = 256
_STRIPE = 0.05  # of the voxels on each side of white matter's mode
_TISSUES = 3
_SAMPLES = 50_000


def foreground(image: np.ndarray) -> np.ndarray:
    """Where an image is brighter than Otsu's threshold: of a head without a mask what is not air."""
    low, high = np.percentile(image, (0, 99.9))
    counts, edges = np.histogram(image.clip(low, high), _BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return image > edges[1 + int(np.nan_to_num(between).argmax())]


def linear(shift: float, scale: float) -> Map:
    """x -> (x - shift) / scale.

    Raises:
        ValueError: if the scale is 0.
    """
    if not scale > 0:
        raise ValueError(f"intensities cannot be normalised by {scale:g}: the brain is constant, or its mask is wrong")
    return lambda image: (image - shift) / scale


def percentile(values: np.ndarray) -> Map:
    """The 0.1th and 99.9th percentile become 0 and 1; what lies beyond is clipped."""
    low, high = np.percentile(values, (0.1, 99.9))
    scaled = linear(float(low), float(high - low))
    return lambda image: scaled(image).clip(0, 1)


def zscore(values: np.ndarray) -> Map:
    """Mean 0, standard deviation 1."""
    return linear(float(values.mean()), float(values.std()))


def whitestripe(values: np.ndarray, contrast: str = "T1w") -> Map:
    """Mean 0 and standard deviation 1 of the intensities about white matter's mode (Shinohara et al., 2014).

    That is the brightest mode of a T1w image, and the largest one of others.
    """
    kept = values[values <= np.percentile(values, 96)] if contrast == "T1w" else values
    counts, edges = np.histogram(kept, _BINS)
    kernel = np.exp(-0.5 * (np.arange(-24, 25) / 8) ** 2)
    smooth = np.convolve(counts, kernel, "same")
    modes = [i for i in range(1, _BINS - 1) if smooth[i - 1] < smooth[i] >= smooth[i + 1]]
    # A mode of a few voxels is noise.
    modes = [i for i in modes if smooth[i] > 0.1 * smooth.max()] or [int(smooth.argmax())]
    mode = edges[modes[-1] if contrast == "T1w" else int(smooth.argmax())] + (edges[1] - edges[0]) / 2
    place = float((values < mode).mean())
    low, high = np.quantile(values, (max(place - _STRIPE, 0), min(place + _STRIPE, 1)))
    stripe = values[(values >= low) & (values <= high)]
    return linear(float(stripe.mean()), float(stripe.std()))


def white_matter_by_fcm(values: np.ndarray) -> np.ndarray:
    """How much each voxel of a T1w brain belongs to white matter, (N,): fuzzy c-means of three tissues (Bezdek)."""
    sample = values[:: max(1, len(values) // _SAMPLES)]
    centers = np.percentile(sample, (10, 50, 90))
    for _ in range(100):
        weights = _memberships(sample, centers) ** 2
        found = (weights @ sample) / weights.sum(1)
        moved, centers = np.abs(found - centers).max(), found
        if moved < 1e-4 * np.ptp(sample):
            break
    return _memberships(values, np.sort(centers))[-1]


def _memberships(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    closeness = 1 / np.maximum((values - centers[:, None]) ** 2, 1e-12)
    return closeness / closeness.sum(0)


def white_matter_by_gmm(values: np.ndarray) -> np.ndarray:
    """The same by a mixture of three Gaussians, of which white matter is the brightest.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError("--normalize gmm needs the package scikit-learn: pip install 'morphzoo[demo]'") from error
    sample = values[:: max(1, len(values) // _SAMPLES), None]
    start = np.percentile(sample, (10, 50, 90))[:, None]
    mixture = GaussianMixture(_TISSUES, means_init=start, random_state=0).fit(sample)
    return mixture.predict_proba(values[:, None])[:, int(mixture.means_.argmax())]


def tissue(values: np.ndarray, weights: np.ndarray) -> Map:
    """The weighted mean, of white matter, becomes 1, and 0 stays."""
    return linear(0.0, float(np.average(values, weights=weights)))


def landmarks(values: np.ndarray) -> list[float]:
    """The intensities at `LANDMARKS`."""
    return [float(x) for x in np.percentile(values, LANDMARKS)]


def standard_scale(people: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several scans' landmarks, each first scaled from 0 to 100 (Nyul and Udupa, 1999)."""
    scaled = [100 * (np.array(one) - one[0]) / max(one[-1] - one[0], 1e-12) for one in people]
    return [float(x) for x in np.mean(scaled, axis=0)]


def nyul(values: np.ndarray, scale: Sequence[float]) -> Map:
    """The landmarks go to a standard scale, piecewise linearly; the outer pieces go on beyond them."""
    own, target = np.array(landmarks(values)), np.array(scale)
    if own[-1] <= own[0]:
        linear(0, 0)
    own += np.arange(len(own)) * 1e-6 * (own[-1] - own[0])  # equal percentiles, of integers
    slopes = np.diff(target) / np.diff(own)

    def mapped(image: np.ndarray) -> np.ndarray:
        piece = np.searchsorted(own, image).clip(1, len(own) - 1) - 1
        return target[piece] + slopes[piece] * (image - own[piece])

    return mapped
