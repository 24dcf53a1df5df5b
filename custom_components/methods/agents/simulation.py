"""What an agent sees on its way, and what each action would gain there, made of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Generator, Tensor, nn

from ...affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine, rotation_matrix
from ...checks import check_number
from ...fields import compose, identity_grid
from ...synthesis.contrast import ContrastDraw, RandomContrast
from ...synthesis.noise import Draw, uniform
from ...synthesis.places import render_at
from ...synthesis.warp import RandomWarp
from .rigid import RigidMoves, centred, identity


class StateDraw(TypedDict):
    """What `SimulatedStates` draws: of each pair, whether it is stripped (B,), the turn (B, 1 or 3), in radians, and
    the shift (B, D), in voxels, of the true map; of each state the share of it that is still missing (B, M) and how
    many actions were taken to get there (B, M); the places, the looks, and the most actions of all, a number."""

    strip: Tensor
    turn: Tensor
    shift: Tensor
    missing: Tensor
    taken: Tensor
    most: int
    place: Draw
    other: Draw
    looks: list[ContrastDraw]


class SimulatedStates:
    """States of rigid registrations whose answer is known, as a `synthesis` of `data.batches.SynthesizedBatch`.

    Of a label map at twice the resolution two images are rendered, each with looks of its own: fixed = map o A, and
    moving = map o A o (id + u) o T*^-1, with A a random place, u a small deformation and T* the true rigid map. Of
    each pair the agent is shown several states T. In one half it stands where its own policy leads it from the
    identity in some actions; in the other half a random share of T* is missing, in every other state a small one. A
    state is moving o T, fixed, and the gain of each action.

    The states of the policy take the place of a replay memory: they are those where the agent goes, labelled by the
    known answer (Ross et al.'s dataset aggregation), and new pairs are cheaper than stored ones.

    Args:
        contrast: what labels look like.
        place: the places A, on the grid of the images.
        other: the deformations u.
        moves: the actions.
        policy: the network that is trained; None: all states are starts, where T is the identity.
        states: of each pair.
        most: actions of the policy.
        starts: largest turn of the true map in degrees, and its largest shift in voxels of the images.
    """

    STRIPPED = 0.3  # share of pairs without what lies outside the brain
    FIRST_EXTRACEREBRAL = 500  # from this id on labels do

    def __init__(
        self,
        contrast: RandomContrast,
        place: RandomWarp,
        other: RandomWarp,
        moves: RigidMoves,
        *,
        policy: nn.Module | None = None,
        states: int = 4,
        most: int = 8,
        starts: tuple[float, float] = (30.0, 7.5),
    ) -> None:
        check_number("states", states, least=1, whole=True)
        self.contrast, self.place, self.other, self.moves = contrast, place, other, moves
        self.policy, self.states, self.most, self.starts = policy, states, most, starts

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> StateDraw:
        """All random numbers of `batch` pairs for maps of `size`."""
        half, d = [n // 2 for n in size], self.moves.spatial_dims
        # The host needs to know how long to walk: it draws that itself, and waits for no GPU.
        is_there = generator.device != torch.device("cpu")
        host = Generator().manual_seed(generator.initial_seed()) if is_there else generator
        most = int(torch.randint(self.most + 1, (1,), generator=host))

        def vector(length: int, largest: float) -> Tensor:
            """Of a random direction and a length that is uniform up to the largest."""
            way = torch.randn(batch, length, generator=generator, device=generator.device)
            return way / way.norm(dim=1, keepdim=True) * uniform((0, largest), (batch, 1), generator)

        share = uniform((0, 1), (batch, self.states), generator)
        share[:, 1::2] *= 0.2
        return {
            "strip": uniform((0, 1), (batch,), generator) < self.STRIPPED,
            "turn": vector(self.moves.turns, torch.pi / 180 * self.starts[0]),
            "shift": vector(d, self.starts[1]),
            "missing": share,
            "taken": uniform((0, 1), (batch, self.states), generator) * (most + 1),
            "most": most,
            "place": self.place.draw(batch, half, generator),
            "other": self.other.draw(batch, half, generator),
            "looks": [self.contrast.draw(batch, half, generator) for _ in range(2)],
        }

    @torch.no_grad()
    def __call__(self, *maps_and_draw: object) -> dict[str, Tensor]:
        """Of integer maps (B, 1, *2S), and B M states in all: `moving`, `fixed` (B M, 1, *S), `gains` (B M, steps,
        actions), `offset` (B M, D, D + 1), what is missing of the true map about the grid's centre."""
        *maps, draw = maps_and_draw
        drawn: StateDraw = draw  # type: ignore[assignment]
        moving, fixed, truth = self.pairs(maps[-1], drawn)  # type: ignore[arg-type]
        images = torch.cat([moving, fixed], 1).repeat_interleave(self.states, 0)
        missing = self._missing(images, truth, drawn)
        truth = truth.repeat_interleave(self.states, 0)
        image = self.moves.seen(images, compose_affine(truth, invert_affine(missing)))
        return {"moving": image[:, :1], "fixed": image[:, 1:], "gains": self.moves.gains(missing), "offset": missing}

    def pairs(self, labels: Tensor, draw: StateDraw) -> tuple[Tensor, Tensor, Tensor]:
        """The images themselves, moving and fixed (B, 1, *S), and the true maps (B, D, D + 1)."""
        strip = draw["strip"].view(-1, *[1] * (labels.ndim - 1))
        labels = labels.masked_fill((labels >= self.FIRST_EXTRACEREBRAL) & strip, 0)
        truth = torch.cat([rotation_matrix(draw["turn"]), draw["shift"][:, :, None]], 2)
        return *self._rendered(labels, truth, draw), truth

    def _rendered(self, labels: Tensor, truth: Tensor, draw: StateDraw) -> tuple[Tensor, Tensor]:
        half = [n // 2 for n in labels.shape[2:]]
        place, other = self.place.field(draw["place"], half), self.other.field(draw["other"], half)
        back = affine_to_ddf(centred_to_voxel(centred(invert_affine(truth), half), half), half)
        grid = identity_grid(half, device=labels.device)
        fields = (compose(compose(place, other), back), place)
        moving, fixed = (
            render_at(self.contrast, labels, 2 * (grid + field) + 0.5, look)[0]
            for field, look in zip(fields, draw["looks"], strict=True)
        )
        return moving, fixed

    def _missing(self, images: Tensor, truth: Tensor, draw: StateDraw) -> Tensor:
        """What is missing of the true map in each state, (B M, D, D + 1)."""
        if self.policy is None:
            return truth.repeat_interleave(self.states, 0)
        share = draw["missing"].flatten()[:, None]
        turn, shift = (draw[key].repeat_interleave(self.states, 0) for key in ("turn", "shift"))
        drawn = torch.cat([rotation_matrix(share * turn), (share * shift)[:, :, None]], 2)
        number = torch.arange(len(drawn), device=drawn.device) % self.states
        own = number >= self.states // 2
        walked = self._walked(images, draw)
        missing = compose_affine(invert_affine(walked), truth.repeat_interleave(self.states, 0))
        return torch.where(own[:, None, None], missing, drawn)

    def _walked(self, images: Tensor, draw: StateDraw) -> Tensor:
        """Where the policy leads: always the action that gains most, of any step, as long as it gains at all."""
        assert self.policy is not None
        d, moves = self.moves.spatial_dims, self.moves
        matrix, taken = identity(len(images), d, images.device), draw["taken"].flatten()
        actions = torch.cat([moves.actions(step, images) for step in moves.steps])
        for number in range(draw["most"]):
            values: Tensor = self.policy(moves.seen(images, matrix)).float()
            gains = torch.stack([values[:, i] * step for i, step in enumerate(moves.steps)], 1).flatten(1)
            best, chosen = gains.max(1)
            goes = ((best > 0) & (number < taken - 1))[:, None, None]
            matrix = torch.where(goes, compose_affine(matrix, actions[chosen]), matrix)
        return matrix
