"""Load a network's weights when an evaluation starts."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from ..files import read_state


class WeightsLoader(CheckpointLoader):
    """MONAI's `CheckpointLoader`, for files whose checksums are right and whose errors are one sentence.

    Args: as MONAI's.
    """

    def __call__(self, engine: Engine) -> None:
        """Raises: FileNotFoundError: if there is no such file. ValueError: if it is damaged or another network's."""
        read_state(self.load_path)
        try:
            super().__call__(engine)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{self.load_path}: these are not weights of this bundle's network") from error
