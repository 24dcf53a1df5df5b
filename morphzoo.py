"""`import morphzoo` gives what `import custom_components` gives: the same objects, under the project's name.

MONAI wants the components of a bundle in a package of that other name. There is one package only, so that a class is
itself whichever name it is reached by.
"""

from __future__ import annotations

import custom_components

__all__ = custom_components.__all__


def __getattr__(name: str) -> object:
    return getattr(custom_components, name)


def __dir__() -> list[str]:
    return dir(custom_components)
