"""What the clients of a MONAI Label server may ask for, checked, and kept from MONAI's parser.

MONAI Label writes the settings of a request into the bundle's configuration, where a text may be code. The exported
configuration therefore hands out an `Offered`, of which MONAI Label takes nothing but what it shows, and its settings
read an `Asked`, which the first transform fills from the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..vocabulary import Data

if TYPE_CHECKING:
    from _collections_abc import dict_keys

# What MONAI Label 0.8.5 and its clients put into a request beside a bundle's own settings.
# fmt: off
_OTHERS = {
    "background", "bundle_path", "cache_transforms", "cache_transforms_in_memory", "cache_transforms_ttl",
    "client_id", "color_map", "description", "device", "foreground", "image", "image_path", "label_info",
    "label_tag", "labels", "logging", "model", "model_filename", "result_compress", "result_dtype",
    "result_extension", "result_prefix", "result_write_to_file", "roi", "roi_size", "save_label", "session",
    "session_id", "skip_writer", "spatial_size", "strategy", "sw_batch_size", "sw_overlap", "target_spacing",
    "timeout", "user",
}
# fmt: on

_MOST_ITERATIONS = 1000


def refuse_unknown(data: Data, settings: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises ValueError: if data are a request, and it has a setting that is neither among these nor MONAI Label's own.

    Args:
        data: a request, or an item of a data list, which may have more.
        settings: names for the message.
        others: further names that a request may have.
    """
    known = {*settings, *others, *_OTHERS}
    unknown = [name for name in data if name not in known]
    if "model" in data and unknown:
        raise ValueError(f"there is no setting {unknown[0]!r}; there are {', '.join(settings)}")


class Offered(dict[str, object]):
    """The settings that a client's panel shows, with their defaults.

    MONAI Label copies them as a dictionary for the panel. For a request it goes through `keys()`, and copies what was
    asked into the configuration. There are none, so that nothing of a request gets there.
    """

    def keys(self) -> dict_keys[str, object]:
        nothing: dict[str, object] = {}
        return nothing.keys()


class Asked:
    """The settings of a request: those that were offered, with the values that are possible.

    Args:
        offered: `affine`, `optimize` and `hyper` with their defaults, as far as the bundle has them.
        affine: the possible values of `affine`.
    """

    def __init__(self, offered: dict[str, object], affine: Sequence[str]) -> None:
        self.affine = list(affine)
        self.values = dict(offered)
        self.names = list(self.values)

    def take(self, data: Data) -> None:
        """Take the settings from a request, or leave them where it does not name them.

        Raises:
            ValueError: if a value is of another type or outside of its range, or nobody knows the setting.
        """
        for name in self.names:
            if data.get(name) is not None:
                self.values[name] = self._checked(name, data[name])
        for name in ("image", "moving", "label_moving", "label"):
            if not isinstance(data.get(name, ""), str | None):
                raise ValueError(f"{name}: expected a path, got {data[name]!r}")
        if data.get("answer", "labels") not in ("labels", "image"):
            raise ValueError(f"expected the answer 'labels' or 'image', got {data['answer']!r}")
        refuse_unknown(data, [*self.names, "moving", "answer"], ("label_moving", "label"))

    def value(self, name: str) -> object:
        """The value of a setting, as asked or offered."""
        return self.values[name]

    def _checked(self, name: str, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "affine":
            fits, wanted = isinstance(value, str) and value in self.affine, f"one of {', '.join(self.affine)}"
        elif name == "hyper":
            fits = value == "auto" or (number and 0 <= float(str(value)) <= 1)
            wanted = "a number from 0 to 1, or 'auto'"
        else:
            fits = number and float(str(value)).is_integer() and 0 <= float(str(value)) <= _MOST_ITERATIONS
            fits = fits or value == "auto"
            wanted = f"a whole number from 0 to {_MOST_ITERATIONS}, or 'auto'"
        if not fits:
            raise ValueError(f"{name}: expected {wanted}, got {value!r}")
        return int(float(str(value))) if name == "optimize" and number else value
