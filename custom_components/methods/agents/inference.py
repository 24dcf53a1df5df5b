"""An agent in the place of an affine stage: before a deformation, or in front of any other bundle."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ...deformations.base import Deformation
from ...inference.multistep import MultiStepInferer
from ...inference.prediction import Masks, Network, Prediction, Refinement
from ...inference.registration import RegistrationInferer
from ...networks.parallel import unwrap
from ...networks.zero import ZeroField
from .walk import Walk


class WalkPredictor:
    """The end of an agent's walk as the parameters of its moves' deformation; "actions" (B,) says how many it took.

    Args:
        walk: takes them.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        ways = self.walk(image, network)
        moves = self.walk.moves
        parameters = moves.parameters(torch.stack([way[-1] for way in ways]), image.shape[2:])
        actions = torch.tensor([len(way) - 1 for way in ways], device=image.device)
        return Prediction(parameters, moves.deformation, {"actions": actions})


class AgentInferer(MultiStepInferer):
    """A `MultiStepInferer` whose first step is an agent's walk, and whose only other one a refinement.

    Args:
        walk: of the agent.
        deformation: of the refinement.
        refinement, inverse: see `MultiStepInferer`.
    """

    def __init__(
        self, walk: Walk, deformation: Deformation, *, refinement: Refinement | None = None, inverse: bool = False
    ) -> None:
        super().__init__(deformation, refinement=refinement, inverse=inverse)
        self.agent = RegistrationInferer(walk.moves.deformation, WalkPredictor(walk), inverse=inverse)

    def _inferers(self, network: Network) -> list[Inferer]:
        return [self.single] if isinstance(unwrap(network), ZeroField) else [self.agent, *self.last]


class AgentAligner(nn.Module):
    """A walk as `inference.alignment.NetworkAligner` wants it: a pair (1, 2, *S) to its map (1, D, D + 1) in centred
    coordinates. Its state is that of the network.

    Args:
        network: scores the actions.
        walk: takes them; its moves are rigid.
    """

    def __init__(self, network: nn.Module, walk: Walk) -> None:
        super().__init__()
        self.network, self.walk = network, walk

    def forward(self, image: Tensor) -> Tensor:
        state = torch.stack([way[-1] for way in self.walk(image, self.network)])
        return self.walk.moves.parameters(state, image.shape[2:])

    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
        return self.network.load_state_dict(state_dict, strict, assign)
