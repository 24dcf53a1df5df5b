"""`morphzoo cite`: what to cite for a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from .. import __version__
from .bundles import DEFAULT_BUNDLE, find_bundle, references


@dataclass(frozen=True)
class Citation:
    """What to cite.

    Args:
        bundle: its name.
        references: the papers of the method, the first is the method's own; then this software.
    """

    bundle: str
    references: tuple[str, ...]

    def __str__(self) -> str:
        return "\n\n".join(self.references)


def cite(bundle: str = DEFAULT_BUNDLE) -> Citation:
    """List what to cite if you use a bundle.

    Args:
        bundle: name or folder.
    Examples:
        `morphzoo cite avsm`
    Raises:
        ValueError: if there is no such bundle.
    """
    folder = find_bundle(bundle)
    software = f"MorphZoo contributors. MorphZoo {__version__}: learned deformable image registration as MONAI bundles."
    return Citation(folder.name, (*references(folder), software))
