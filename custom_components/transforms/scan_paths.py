"""Paths of files that were read, as a loaded item carries them, so that nobody reads a scan twice."""

from __future__ import annotations

from ..space.volumes import Volume
from ..vocabulary import Data, Item


class ScanPath(str):
    """The path of a file that was read, together with the volume in it.

    It is a string so that collation, which knows no other types, hands it through as it is.
    """

    volume: Volume

    def __new__(cls, volume: Volume) -> ScanPath:
        path = super().__new__(cls, volume.path)
        path.volume = volume
        return path

    def __getnewargs__(self) -> tuple[Volume]:  # type: ignore[override]
        return (self.volume,)  # pickled like this on its way from a worker

    @staticmethod
    def volume_of(path: str) -> Volume:
        """The volume that a path of a loaded item carries.

        Raises:
            ValueError: if it carries none.
        """
        # Not by the class: MONAI Label imports a bundle's code anew between the transforms before and after inference.
        volume: Volume | None = getattr(path, "volume", None)
        if volume is None:
            raise ValueError(f"{path}: expected an item as LoadPaird made it, got a path whose file was not read")
        return volume


def release(item: Data) -> Item:
    """The item with plain paths, so that the volumes it carried can leave the memory."""
    return {
        key: str(value) if isinstance(value, str) and hasattr(value, "volume") else value for key, value in item.items()
    }
