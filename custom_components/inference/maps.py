"""Maps between two images on one grid, to be composed and inverted as in the papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..fields import compose, warp


@dataclass(frozen=True, eq=False)
class Map:
    """phi = id + ddf, from the fixed to the moving image, with its inverse where that is known.

    Convention: as in `fields`. `outer @ inner` is phi_outer o phi_inner: the inner map is applied first.

    Args:
        ddf: shape (B, D, *S), voxels.
        inverse_ddf: displacement of the inverse map, of the same shape; None if it is not known.
    """

    ddf: Tensor
    inverse_ddf: Tensor | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Tensor]) -> Map:
        """The map that a deformation's fields describe."""
        return cls(fields["ddf"], fields.get("inverse_ddf"))

    def __matmul__(self, inner: Map) -> Map:
        """The composition; its inverse is known if both inverses are."""
        inverse = None
        if self.inverse_ddf is not None and inner.inverse_ddf is not None:
            inverse = compose(inner.inverse_ddf, self.inverse_ddf)
        return Map(compose(self.ddf, inner.ddf), inverse)

    def inverse(self) -> Map:
        """The inverse map, whose own inverse is this one.

        Raises:
            ValueError: if it is not known.
        """
        if self.inverse_ddf is None:
            raise ValueError("the inverse of this map is not known: let the deformation make inverse fields")
        return Map(self.inverse_ddf, self.ddf)

    def warp(self, image: Tensor, mode: str = "linear") -> Tensor:
        """The image pulled back, `image o phi`, shape (B, C, *S); "nearest" for masks and labels."""
        return warp(image, self.ddf, mode=mode)

    def fields(self) -> dict[str, Tensor]:
        """ "ddf" and, if it is known, "inverse_ddf"."""
        inverse = {} if self.inverse_ddf is None else {"inverse_ddf": self.inverse_ddf}
        return {"ddf": self.ddf, **inverse}
