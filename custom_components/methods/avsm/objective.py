"""The objective of affine networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...affine import compose_affine, invert_affine
from ...vocabulary import Batch, Pred, Result


class AffineLoss(nn.Module):
    """Distance to a known map + similarity + penalty * |A - I|^2 + symmetry * |A_ts A_st - I|^2, each if it has weight.

    |A - I|^2 is the sum of the squared differences of all D (D + 1) entries from those of the identity, in centred
    coordinates. Where `pred["back"]` holds the prediction for the swapped pair, similarity and penalty are the mean of
    both directions. Means over the batch.

    Anchors teach a network of keypoints where to look: keypoint k of each image should coincide with point k of a fixed
    lattice of K = n^D points, mapped from a space that all people share into that image.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`; None leaves the images out.
        points: weight of the mean squared distance, over the voxels of the grid, of where the map and batch["matrix"]
            put them, in squared centred units.
        anchors: weight of the mean squared distance of the keypoints from the lattice.
        lattice: half of its extent along each axis, centred units; one number serves all.
        penalty, symmetry: weights; the latter needs `pred["back"]`.
    Raises:
        ValueError: if there is neither a similarity nor a weight of the points.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019 (all but the
        points and the anchors; sums of its two directions, not means).
    """

    def __init__(
        self,
        similarity: nn.Module | None = None,
        *,
        points: float = 0.0,
        anchors: float = 0.0,
        lattice: float | Sequence[float] = 0.4,
        penalty: float = 0.0,
        symmetry: float = 0.0,
    ) -> None:
        super().__init__()
        if similarity is None and not points:
            raise ValueError("expected a similarity or a weight of the points, got neither")
        self.similarity, self.points, self.penalty, self.symmetry = similarity, points, penalty, symmetry
        self.anchors, self.lattice = anchors, lattice

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]` by name.

        Args:
            pred: "matrix" (B, D, D + 1), fixed to moving, centred coordinates; "warped" and, if asked for, "back", a
                dictionary with the same of the swapped pair; "keypoints" of fixed and moving, (B, K, D) each, for the
                anchors.
            batch: "moving" and "fixed", (B, C, *S); "matrix" for the points; "matrix_moving" and "matrix_fixed" for the
                anchors, from each image to the space of the lattice.
        Raises:
            ValueError: if what a term needs is missing.
        """
        matrix, back = pred["matrix"], pred.get("back")
        if self.symmetry and back is None:
            raise ValueError("the symmetry needs pred['back']: let the inferer register both ways")
        if self.points and "matrix" not in batch:
            raise ValueError("the distance of points needs batch['matrix'], the map that is true")
        ways = [(pred, "fixed")] if back is None else [(pred, "fixed"), (back, "moving")]
        terms: dict[str, Tensor] = {}
        if self.points:
            size = batch["fixed"].shape[2:]
            terms["points"] = self.points * mean_square_distance(matrix, batch["matrix"], size).mean()
        if self.anchors:
            terms["anchors"] = self.anchors * self._from_lattice(pred, batch)
        if self.similarity is not None:
            values = [self.similarity(way["warped"], batch[target], None) for way, target in ways]
            terms["similarity"] = torch.stack(values).mean()
        if self.penalty:
            values = [_from_identity(way["matrix"]) for way, _ in ways]
            terms["penalty"] = self.penalty * torch.stack(values).mean()
        if self.symmetry and back is not None:
            terms["symmetry"] = self.symmetry * _from_identity(compose_affine(matrix, back["matrix"]))
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())  # type: ignore[return-value]

    def _from_lattice(self, pred: Pred, batch: Batch) -> Tensor:
        if "keypoints" not in pred or "matrix_fixed" not in batch:
            raise ValueError("the anchors need pred['keypoints'] and batch['matrix_fixed'], of synthesised pairs")
        values = []
        for points, role in zip(pred["keypoints"], ("fixed", "moving"), strict=True):
            expected = lattice_points(points.shape[1], points.shape[2], self.lattice).to(points)
            back = invert_affine(batch[f"matrix_{role}"])
            d = points.shape[2]
            # A sum of products: autocast would round a matrix product.
            expected = (back[:, None, :, :d] * expected[None, :, None]).sum(3) + back[:, None, :, d]
            values.append((points - expected).square().sum(2).mean())
        return torch.stack(values).mean()


def lattice_points(count: int, spatial_dims: int, extent: float | Sequence[float]) -> Tensor:
    """Points (K, D) of a lattice about the centre, as many along each axis.

    Args:
        count: K, n^D for a whole number n of at least 2.
        spatial_dims: D.
        extent: half of the lattice's length along each axis, or along all.
    Raises:
        ValueError: for another count, or extents for another number of axes.
    """
    n = round(count ** (1 / spatial_dims))
    extents = [extent] * spatial_dims if isinstance(extent, int | float) else list(extent)
    if n < 2 or n**spatial_dims != count or len(extents) != spatial_dims:
        raise ValueError(
            f"expected n^{spatial_dims} keypoints for a lattice of {spatial_dims} axes, such as "
            f"{math.prod([3] * spatial_dims)}, got {count} and extents {extents}"
        )
    axes = [torch.linspace(-half, half, n) for half in extents]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, spatial_dims)


def mean_square_distance(one: Tensor, two: Tensor, size: Sequence[int]) -> Tensor:
    """Mean over a grid's voxels x of |one(x) - two(x)|^2, in squared centred units, (B,).

    Args:
        one, two: affine maps (B, D, D + 1), centred coordinates.
        size: of the grid.
    """
    d = len(size)
    difference = one - two
    unit = max((max(size) - 1) / 2, 0.5)
    # The mean of x_k^2 over n voxels that are 1 / unit apart, about their middle.
    moments = difference.new_tensor([(n * n - 1) / 12 / unit**2 for n in size])
    return (difference[:, :, :d].square() * moments).sum((1, 2)) + difference[:, :, d].square().sum(1)


def _from_identity(matrix: Tensor) -> Tensor:
    identity = torch.eye(*matrix.shape[1:], dtype=matrix.dtype, device=matrix.device)
    return (matrix - identity).square().sum((1, 2)).mean()
