"""A bundle that is loaded once and registers what comes, in this process or, as a function for `tasks`, in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..vocabulary import Entry
from .workflow import load_workflow

if TYPE_CHECKING:
    import torch
    from monai.engines import SupervisedEvaluator

    from ..evaluation.result import Registration
    from ..random_numbers import RandomState
    from ..transforms.load import LoadPaird
    from ..transforms.publish import Publishd


@dataclass(frozen=True)
class Loaded:
    """What registers items of one dimension; `start` are the random numbers that each item begins with."""

    preprocessing: LoadPaird
    evaluator: SupervisedEvaluator
    publisher: Publishd
    device: torch.device
    start: RandomState

    @classmethod
    def of(
        cls, bundle: Path, spatial_dims: int, overlays: str | Sequence[str], settings: Mapping[str, object]
    ) -> Loaded:
        """Load a bundle; arguments and errors as those of `load_workflow`."""
        from ..random_numbers import RandomState, own_random_numbers
        from ..runs import unwrapped

        with own_random_numbers(), unwrapped():
            none_yet: Entry = {"dataset#data": []}  # they come one by one
            part = load_workflow(bundle, spatial_dims, overlays, settings, none_yet).parser.get_parsed_content
            return cls(
                part("preprocessing"), part("evaluator"), part("postprocessing"), part("device"), RandomState.now()
            )

    def register(self, item: Entry) -> Registration:
        """As the evaluator does it, in memory; its handlers do not run, and the program's random numbers stay."""
        import torch
        from monai.data import decollate_batch, list_data_collate

        from ..random_numbers import own_random_numbers
        from ..runs import unwrapped

        with own_random_numbers(self.start), unwrapped():
            batch = list_data_collate([self.preprocessing(cast("dict[object, object]", item))])
            image, _, positional, options = self.evaluator.prepare_batch(batch, self.device)
            amp = torch.autocast(self.device.type, enabled=self.evaluator.amp)
            with self.evaluator.mode(self.evaluator.network), amp:
                pred = self.evaluator.inferer(image, self.evaluator.network, *positional, **options)
            (found,) = decollate_batch({**batch, "pred": pred})
            return self.publisher.registration(found)


@dataclass(frozen=True)
class Registering:
    """Register items of a data list into a folder; each process loads the bundle at its first item.

    Args:
        bundle: its folder.
        spatial_dims: of the images.
        overlays: further config files, the last one wins.
        settings: of inference.json, with `output_dir`.
    """

    bundle: Path
    spatial_dims: int
    overlays: Sequence[str]
    settings: Mapping[str, object]

    def load(self) -> Loaded:
        """The bundle; errors as those of `load_workflow`."""
        return self._loaded

    def register(self, item: Entry) -> Registration:
        """The result in memory."""
        return self._loaded.register(item)

    def __call__(self, item: Entry) -> Registration:
        """The result in its files."""
        return self.register(item).save(str(self.settings["output_dir"])).in_files()

    @cached_property
    def _loaded(self) -> Loaded:
        return Loaded.of(self.bundle, self.spatial_dims, self.overlays, self.settings)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}  # a network does not travel
