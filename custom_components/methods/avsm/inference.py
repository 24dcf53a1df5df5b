"""Prediction of affine maps with their keypoints."""

from __future__ import annotations

from torch import Tensor

from ...deformations.base import Deformation
from ...inference.prediction import Masks, Network, Precision, Prediction


class KeypointPredictor:
    """The matrix of an affine network, and "keypoints", which its loss needs.

    For the training of `networks.affine_keypoints.MultiStepAffine`. The keypoints are those of the first step, [of the
    fixed image, of the moving image], each (B, K, D).

    Args:
        keypoints: False leaves them out, for networks that have none.
        precision: see `Precision`.
    """

    def __init__(self, keypoints: bool = True, precision: str = "float32") -> None:
        self.keypoints, self.precision = keypoints, Precision(precision)

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        if not self.keypoints:
            return Prediction(self.precision.run(network, image, **options), deformation)
        matrix, *points = self.precision.ask(network, image, located=True, **options)
        return Prediction(matrix.float(), deformation, {"keypoints": points})
