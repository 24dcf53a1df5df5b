"""From a pair of images to fields and the warped image: prediction, refinement, deformation, warp."""

from __future__ import annotations

import logging
import time

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..deformations.base import Deformation
from ..deformations.late import LateReadings
from ..fields import plain, warp
from ..vocabulary import Result
from .prediction import Masks, Network, NetworkPredictor, Prediction, Predictor, Refinement
from .pyramid import shrink

logger = logging.getLogger(__name__)


class RegistrationInferer(Inferer):
    """Predict a deformation's parameters for a pair, refine them, and warp the moving image.

    Called as `inferer(image, network)`, with `image` (B, 2C, *S): moving, then fixed. Returns the deformation's fields,
    "warped" (B, C, *S), the moving image pulled back onto the fixed grid, what else `predict` has to say, and "seconds"
    (B,), the time that a pair took.

    Args:
        deformation: from parameters to fields.
        predict: from a pair to parameters; None takes the network's output in float32.
        refinement: improves the parameters for the pair.
        inverse: also make the inverse field.
        draw: make the fields of one sample of a random deformation, to train a probabilistic network.
    Raises:
        ValueError: if a deformation without uncertainty is to be drawn.
    """

    def __init__(
        self,
        deformation: Deformation,
        predict: Predictor | None = None,
        *,
        refinement: Refinement | None = None,
        inverse: bool = False,
        draw: bool = False,
    ) -> None:
        super().__init__()
        if draw and not deformation.is_random:
            raise ValueError(f"expected a random deformation to draw of, got {type(deformation).__name__}")
        self.deformation, self.predict = deformation, NetworkPredictor() if predict is None else predict
        self.refinement, self.inverse, self.draw = refinement, inverse, draw
        self.late = LateReadings()

    def __call__(
        self, inputs: Tensor, network: Network, *, masks: Masks | None = None, finer: int = 1, **options: object
    ) -> Result:
        """Register.

        Args:
            masks: "mask_moving", "mask_fixed", where the refinement looks.
            finer: `predict` sees the pair with so many times fewer voxels along each axis: as its network was trained.
            **options: what else the batch has for `predict`, as a rule for its network, and for the refinement's loss.
        """
        image, start = as_pair(inputs), time.perf_counter()
        shown = image if getattr(self.predict, "takes_channels", False) else first_channels(image)
        prediction = self.predict(shrink(shown, finer), network, self.deformation, masks=masks, **options)
        pred = self.register(image, prediction, masks=masks, finer=finer, **options)
        return {**pred, "seconds": seconds_per_pair(image, start)}

    def register(
        self, image: Tensor, prediction: Prediction, *, masks: Masks | None = None, finer: int = 1, **options: object
    ) -> Result:
        """Fields and warped image of predicted parameters, which are refined first."""
        (moving, fixed), deformation = image.chunk(2, 1), prediction.deformation
        parameters = prediction.parameters
        if self.refinement is not None:
            parameters = self.refinement(
                moving, fixed, parameters, masks, constants=options, deformation=deformation, finer=finer
            )
        make = deformation.draw if self.draw else deformation
        with self.late.on(parameters.requires_grad):
            fields = make(parameters, image.shape[2:], inverse=self.inverse)
        return {**fields, "warped": warp(moving, fields["ddf"]), **prediction.extra}


def as_pair(inputs: Tensor) -> Tensor:
    """Pairs (B, 2C, *S) without MONAI's metadata.

    Raises:
        ValueError: if the channels cannot be those of two images.
    """
    image: Tensor = plain(inputs)
    if image.shape[1] % 2:
        raise ValueError(f"expected moving and fixed with equal channels, got {image.shape[1]} channels in all")
    return image


def first_channels(image: Tensor) -> Tensor:
    """Pairs (B, 2, *S) of the first channels alone, as networks were trained; the log says so if there are more."""
    if image.shape[1] == 2:
        return image
    moving, fixed = image.chunk(2, 1)
    logger.info("the network sees the first of %d channels; what is optimised compares all", moving.shape[1])
    return torch.cat([moving[:, :1], fixed[:, :1]], 1)


def seconds_per_pair(image: Tensor, start: float) -> Tensor:
    """Time since the start that a pair of the batch took, (B,)."""
    if image.is_cuda and not torch.is_grad_enabled():
        torch.cuda.synchronize()
    return torch.full((image.shape[0],), (time.perf_counter() - start) / image.shape[0])
