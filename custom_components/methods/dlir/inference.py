"""Registration stage by stage: affine, then B-splines, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import Inferer
from torch import Tensor

from ...deformations.affine import AffineMap
from ...deformations.base import Deformation
from ...deformations.bspline import BSplineDeformation
from ...inference.multistep import MultiStepInferer
from ...inference.prediction import Network, NetworkPredictor, Refinement
from ...inference.registration import RegistrationInferer
from ...networks.parallel import unwrap
from ...networks.zero import ZeroField
from ...vocabulary import Result


class StagesInferer(MultiStepInferer):
    """A `MultiStepInferer` each of whose steps is another stage of `networks.StageNetworks`.

    phi = phi_0 o phi_1 o phi_2 ..., with phi_0 affine. Each stage sees the moving image as the stages so far warp it:
    always the original, warped once. (The paper adds displacements; TorchIR composes maps, as is done here.)

    Args:
        deformation: of a refinement, which is one more step.
        spacings: of the B-splines, voxels, as those of the network.
        voxel_size: of the image grid; the bending energy is in its units.
        learns: the stage that is trained: those before give their answers without a gradient, those after it none.
            None: all answer.
        precision: see `inference.prediction.Precision`.
        refinement, inverse: see `MultiStepInferer`.
    Raises:
        ValueError: if there is no such stage.
    """

    def __init__(
        self,
        deformation: Deformation,
        spacings: Sequence[int],
        *,
        voxel_size: float | Sequence[float] | None = None,
        learns: int | None = None,
        precision: str = "float32",
        refinement: Refinement | None = None,
        inverse: bool = False,
    ) -> None:
        super().__init__(deformation, refinement=refinement, inverse=inverse)
        if learns is not None and not 0 <= learns <= len(spacings):
            raise ValueError(f"expected a stage from 0 to {len(spacings)}, got {learns}")
        kinds = [AffineMap(), *[BSplineDeformation(h, voxel_size) for h in spacings]]
        stages: list[Inferer] = [
            RegistrationInferer(kind, NetworkPredictor(precision, stage=number), inverse=inverse)
            for number, kind in enumerate(kinds)
        ]
        if learns is not None:
            stages = [*map(Frozen, stages[:learns]), stages[learns]]
        self.stages = stages

    def _inferers(self, network: Network) -> list[Inferer]:
        if isinstance(unwrap(network), ZeroField):
            return [self.single]
        return self.stages + self.last


class Frozen(Inferer):
    """An inferer that leaves no gradient."""

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Network, **options: object) -> Result:
        return self.inferer(inputs, network, **options)
