"""An evaluator for lists of pairs, of which some may fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator

from ..data.names import item_name
from ..evaluation.result import Failure
from ..runs import sentence
from ..vocabulary import Collated


class CohortEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, which passes over a pair that fails, if there are others, and says so at the end.

    The output of such an iteration is one item with a `Failure` under "failure". Pairs come one by one, in the order
    of the list. A pair alone fails as with MONAI's evaluator.

    Args:
        tolerant: pass over a pair that fails also if it is alone, to get the tables with its row.
        **options: of MONAI's evaluator.
    """

    def __init__(self, *, tolerant: bool = False, **options: Any) -> None:
        self.tolerant = tolerant
        super().__init__(**options)

    def run(self, global_epoch: int = 1) -> None:
        """Raises RuntimeError: at the end, if pairs failed; the results of the others are there."""
        loader: DataLoader = self.data_loader  # type: ignore[has-type]
        if (len(loader) < 2 and not self.tolerant) or loader.batch_size != 1:
            super().run(global_epoch)
            return
        self.failures: list[Failure] = []
        self.data_loader = _Tolerant(loader)
        try:
            super().run(global_epoch)
        finally:
            self.data_loader = loader
        if self.failures:
            first = self.failures[0]
            raise RuntimeError(
                f"{len(self.failures)} of {len(loader)} pairs failed, the others are done; {first.id}: {first.reason}"
            )

    def _iteration(self, engine: Engine, batchdata: Collated | Exception) -> Any:
        if not isinstance(self.data_loader, _Tolerant):
            return super()._iteration(engine, batchdata)
        try:
            if isinstance(batchdata, Exception):
                raise batchdata
            return super()._iteration(engine, batchdata)
        except Exception as error:
            item = self.data_loader.loader.dataset.data[engine.state.iteration - 1]
            self.failures.append(Failure(item_name(item), item, sentence(error)))
            return [{"failure": self.failures[-1]}]


class _Tolerant:
    """Batches of a loader; in place of one that cannot be loaded comes the error."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[object]:
        batches = iter(self.loader)
        while True:
            try:
                yield next(batches)
            except StopIteration:
                return
            except Exception as error:
                yield error
