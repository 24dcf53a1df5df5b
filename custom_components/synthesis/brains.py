"""Heads rendered as one scanner would show them: the synthesis that most bundles' weights were trained with."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .background import ZeroBackground
from .bias import BiasField
from .blur import RandomBlur
from .contrast import RandomContrast
from .gamma import RandomGamma
from .intensities import LabelIntensities
from .noise import Range
from .pairs import SynthesizePair
from .unit_range import UnitRange
from .warp import RandomWarp


class BrainContrast(RandomContrast):
    """Images of a known contrast from label maps: the structures' means come from a table, the rest varies little.

    Args:
        statistics: CSV file of the structures' means, and contrast: as of `LabelIntensities`.
        std, background_std: ranges of the noise of each structure and of the background, on the scale 0 to 255.
        zero_background: probability that the background is exactly 0.
        bias: largest standard deviation of the log bias field.
        gamma: standard deviation of the log exponent.
        statistics_share: of the images that the table colours; the others get random means.
    """

    def __init__(
        self,
        statistics: str | os.PathLike[str],
        contrast: str | Sequence[str] = "t1",
        *,
        std: Range = (2.5, 10),
        background_std: Range = (0, 3),
        zero_background: float = 0.5,
        bias: float = 0.2,
        gamma: float = 0.2,
        statistics_share: float = 1.0,
    ) -> None:
        super().__init__(
            LabelIntensities(
                std=std,
                background_std=background_std,
                statistics=statistics,
                contrast=contrast,
                statistics_share=statistics_share,
            ),
            [ZeroBackground(zero_background), RandomBlur(), BiasField(bias), UnitRange(), RandomGamma(gamma)],
        )


class T1Brains(SynthesizePair):
    """Training pairs of T1-like heads from affinely aligned label maps, left and right flipped in half of them.

    Each map is turned, scaled and shifted a little, as affine alignment leaves scans, and keeps its shape: what a
    network must find is the difference between two people.

    Args:
        statistics: CSV file of the structures' means (`LabelIntensities`).
        rotation_degrees, scaling, shift: largest offsets left by the affine alignment; shift in voxels.
        strip: probability that both maps lose what lies outside the brain.
        zero_background: probability that the background is exactly 0.
    """

    def __init__(
        self,
        statistics: str | os.PathLike[str],
        *,
        rotation_degrees: float = 5.0,
        scaling: float = 0.1,
        shift: float = 2.0,
        strip: float = 0.5,
        zero_background: float = 0.5,
    ) -> None:
        super().__init__(
            RandomWarp(0.0, rotation_degrees=rotation_degrees, scaling=scaling, shift=shift),
            BrainContrast(statistics, zero_background=zero_background),
            flip=(0.5,),
            strip=strip,
        )
