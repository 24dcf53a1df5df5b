"""The images of an item: files or images in memory before it is loaded; paths that carry what was read after it."""

from __future__ import annotations

from ..space.memory_images import MemoryImage, Source
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


def source_in(item: Data, key: str) -> Source:
    """The image under a key of an item that is not loaded yet: a path, or an image in memory.

    Raises:
        ValueError: if there is none.
    """
    found = item.get(key)
    if not found:
        raise ValueError(
            f"expected an item with the path of an image under {key!r}, got the keys {sorted(map(str, item))}"
        )
    return found if isinstance(found, MemoryImage) else str(found)


def release(item: Data) -> Item:
    """The item with plain paths, so that the volumes it carried can leave the memory."""
    return {
        key: str(value) if isinstance(value, str) and hasattr(value, "volume") else value for key, value in item.items()
    }
