"""Progressive growing: the levels of a network join one after another while it trains."""

from __future__ import annotations

from collections.abc import Sequence

from ignite.engine import Engine, Events

from ...checks import check_number
from .network import GrowingUNet


class Growth:
    """Let the levels of a network take part from coarse to fine, as the iterations of a training go by.

    What takes part depends on the iteration alone, so that a resumed run goes on as it would have.

    Args:
        network: the network.
        shares: of the iterations, for each stage, the coarsest first. Of n stages the first one trains the levels from
            n - 1 on, where 0 is the finest level, and each of the following ones has one level more.
        fade: the share of a stage in which the weight of its new level rises from 0 to 1.
    Raises:
        ValueError: if a number is out of range, or there are more stages than levels.
    References: Eppenhof, Lafarge, Veta, Pluim, IEEE TMI 39(5), 2020; the schedule is ours.
    """

    def __init__(
        self, network: GrowingUNet, shares: Sequence[float] = (0.4, 0.3, 0.2, 0.1), fade: float = 1 / 3
    ) -> None:
        check_number("fade", fade, least=0, most=1)
        for share in shares:
            check_number("a share of the iterations", share, above=0)
        if not 1 <= len(shares) <= network.levels:
            raise ValueError(f"expected 1 to {network.levels} stages, got {len(shares)}")
        self.network, self.fade = network, fade
        self.shares = [share / sum(shares) for share in shares]

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.set)

    def set(self, engine: Engine) -> None:
        """Let the levels of the engine's iteration take part."""
        total = engine.state.max_epochs * engine.state.epoch_length
        self.network.grow(*self.at((engine.state.iteration - 1) / total))

    def at(self, progress: float) -> tuple[int, float]:
        """Stage and weight of its finest level when a share `progress` of the iterations is done, from 0 to 1."""
        start = 0.0
        for k, share in enumerate(self.shares):
            within = (progress - start) / share
            if within < 1 or k == len(self.shares) - 1:
                break
            start += share
        rising = k > 0 and within < self.fade
        return len(self.shares) - 1 - k, within / self.fade if rising else 1.0
