"""What peers are asked for: a name, the tool of `peers_others`, and its settings; and the settings along each curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A way to register a pair.

    Args:
        tool: "ants", "greedy", "fireants", or "morphzoo".
        settings: of the tool, see `peers_others` and `peers_ours`.
    """

    tool: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: dict[str, Any]) -> Peer:
        return Peer(self.tool, {**self.settings, **other})


def _ants(metric: str, sampling: int, iterations: tuple[int, ...], step: float) -> Peer:
    names = ("syn_metric", "syn_sampling", "reg_iterations", "grad_step")
    return Peer("ants", dict(zip(names, (metric, sampling, iterations, step), strict=True)))


def _greedy(radius: int) -> Peer:
    # The smoothing is greedy's default.
    return Peer("greedy", {"radius": radius, "smoothing": (1.7321, 0.7071)})


PEERS = {
    "SyN": _ants("mattes", 32, (40, 20, 0), 0.2),
    "SyN long": _ants("mattes", 32, (100, 70, 50, 20), 0.1),
    "SyN-CC 4": _ants("CC", 4, (40, 20, 0), 0.2),
    "SyN-CC 2": _ants("CC", 2, (40, 20, 0), 0.2),
    "SyN-CC 4 long": _ants("CC", 4, (100, 70, 50, 0), 0.1),
    "SyN-CC 4 full": _ants("CC", 4, (100, 70, 50, 20), 0.1),
    "greedy 2": _greedy(2),
    "greedy 4": _greedy(4),
    # Its defaults: correlation in windows of 7 voxels, Adam; iterations as in its tutorials.
    "FireANTs": Peer("fireants", {"smooth_grad_sigma": 1.0, "smooth_warp_sigma": 0.5}),
}

# The curves: a peer under other smoothing, as (of the update, of the whole field). ANTs takes variances in voxels
# squared, by default 3 and 0; greedy and FireANTs standard
# deviations in voxels; ours `--smoothness`.
_VARIANCES = ((1, 0), (2, 0), (3, 0), (6, 0), (12, 0), (3, 0.5))
_SDS = ((1, 0.35), (1.3, 0.5), (1.7321, 0.7071), (2.5, 1), (3.5, 1.5), (5, 2))
_SMOOTHNESS = (0.25, 0.5, 1, 2, 4)
_COMMANDS = {name: ["register", "--bundle", "voxelmorph", "--quality", name] for name in ("fast", "default", "best")}
_COMMANDS["optimize"] = ["optimize"]  # without a network, for 2-D
_FIRE = ((1, 0.25), (1, 0.5), (2, 0.5), (1, 1), (2, 1), (3, 1.5))
CURVES = {
    **{f"SyN ({u:g} {t:g})": PEERS["SyN"] | {"flow_sigma": u, "total_sigma": t} for u, t in _VARIANCES},
    **{f"SyN-CC 2 ({u:g} {t:g})": PEERS["SyN-CC 2"] | {"flow_sigma": u, "total_sigma": t} for u, t in _VARIANCES},
    **{
        f"FireANTs ({u:g} {t:g})": PEERS["FireANTs"] | {"smooth_grad_sigma": u, "smooth_warp_sigma": t}
        for u, t in _FIRE
    },
    **{f"greedy 2 ({u:g} {t:g})": PEERS["greedy 2"] | {"smoothing": (u, t)} for u, t in _SDS},
    **{
        f"{name} ({s:g})": Peer("morphzoo", {"words": [*words, "--smoothness", str(s)]})
        for name, words in _COMMANDS.items()
        for s in _SMOOTHNESS
    },
}
