"""Dense vector fields on voxel grids: identity, warp, composition, integration, inversion, resizing, derivatives.

Convention: fields have shape (B, D, *S), channel i moves along tensor axis i, in voxels; voxel centres lie at integer
coordinates; grids are aligned at their corners. phi(x) = x + ddf(x) maps fixed to moving, `warped(x) = moving(phi(x))`.
Every function takes 2-D and 3-D, any batch size, float32 and float64; lower precisions are raised to float32.
Images are looked up here alone; `repeatable.grid_sample` is called by no other module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import repeatable

Value = TypeVar("Value")

_MODES = {"linear": "bilinear", "nearest": "nearest"}


def identity_grid(
    size: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Coordinates of the voxel centres, shape (D, *size), in voxels: channel i is the index along axis i."""
    axes = [torch.arange(n, dtype=dtype, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sample(image: Tensor, locations: Tensor, *, mode: str = "linear", padding: str = "zeros") -> Tensor:
    """Read an image at given locations.

    Convention: `locations[:, i]` is the coordinate along axis i of the *image*, in its voxels; integer coordinates are
    voxel centres, so location (0, 0, 0) reads the first voxel and (n - 1, ...) the last. An axis of one voxel is
    constant: coordinates along it are ignored.

    Args:
        image: shape (B, C, *S_image). Integer and boolean images (label maps) need `mode="nearest"`, keep their type.
        locations: shape (B, D, *S_out), or batch 1 for the whole image batch.
        mode: "linear" or "nearest".
        padding: what lies outside the image, "zeros" or "border".
    Returns:
        Shape (B, C, *S_out).
    Raises:
        ValueError: if shapes do not fit, or a label map is to be interpolated linearly.
    """
    spatial_dims = image.ndim - 2
    if locations.ndim != image.ndim or locations.shape[1] != spatial_dims:
        raise ValueError(
            f"expected locations of shape (B, {spatial_dims}, ...) for an image of shape {tuple(image.shape)}, "
            f"got {tuple(locations.shape)}"
        )
    return _lookup(image, locations, mode, padding, relative=False)


def warp(image: Tensor, ddf: Tensor, *, mode: str = "linear", padding: str = "zeros") -> Tensor:
    """Pull an image back along a displacement field: `warped(x) = image(x + ddf(x))`.

    Convention: `ddf` lives on the grid of the result, in voxels, and points into the image. A field that is 2 along
    axis 0 everywhere gives `warped[i] = image[i + 2]`: the content moves towards *smaller* indices.

    Args:
        image: shape (B, C, *S): intensities, one-hot labels, or an integer label map (with `mode="nearest"`).
        ddf: shape (B, D, *S), voxels.
        mode: "linear" or "nearest".
        padding: "zeros" or "border".
    Returns:
        Shape (B, C, *S).
    Raises:
        ValueError: if `ddf` is not a field for this image.
    """
    _check_field(ddf)
    if image.ndim != ddf.ndim:
        raise ValueError(f"expected an image for a field of shape {tuple(ddf.shape)}, got shape {tuple(image.shape)}")
    return _lookup(image, ddf, mode, padding, relative=True)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Displacement of phi_outer o phi_inner: `inner(x) + outer(x + inner(x))`; the inner map is applied first.

    Args:
        outer, inner: shape (B, D, *S), voxels of the same grid. Beyond the grid the outer field keeps its border value.
    Returns:
        Shape (B, D, *S), voxels.
    """
    _check_field(outer)
    return at_least_float32(inner) + warp(outer, inner, padding="border")


def integrate_velocity(velocity: Tensor, num_steps: int = 7) -> Tensor:
    """Integrate a stationary velocity field over unit time by scaling and squaring.

    Convention: vectors in voxels, channel i along tensor axis i; phi(x) = x + ddf(x) maps fixed to moving.
    `integrate_velocity(-v)` is the inverse up to interpolation. Outside the grid the field keeps its border value
    (zero padding would drag the map to the identity there and fold it).

    Args:
        velocity: shape (B, D, *S), voxels per unit time.
        num_steps: number of squarings K; the field is first divided by 2**K. The error halves with each added step.
    Returns:
        Displacement phi - id, shape (B, D, *S), voxels.
    Raises:
        ValueError: if the channel count is not the number of spatial axes, or `num_steps` is negative.
    References: Arsigny et al., MICCAI 2006.
    """
    _check_field(velocity)
    if num_steps < 0:
        raise ValueError(f"expected num_steps >= 0, got {num_steps}")
    velocity = at_least_float32(velocity)
    # The loop works in grid_sample's own units and axis order, so that a step is one add, one lookup and one add.
    size = velocity.shape[2:]
    scale = per_channel([_scale(n) for n in reversed(size)], velocity)
    field = velocity.flip(1) * (scale * 2.0**-num_steps)
    identity = _normalized_grid(torch.zeros_like(velocity[:1]), size, relative=True).movedim(-1, 1).contiguous()
    for _ in range(num_steps):
        field = field + _grid_sample(field, (identity + field).movedim(1, -1), "bilinear", "border")
    return (field / scale).flip(1)


def invert(ddf: Tensor, *, max_iterations: int = 50, tolerance: float = 0.01) -> tuple[Tensor, Tensor]:
    """Invert a displacement field by fixed-point iteration: `inverse(y) <- -ddf(y + inverse(y))`.

    Converges where the field is a contraction (no stretching beyond a factor of two); for a field made from a velocity,
    integrating the negative velocity is exact and cheaper. Check the residual.

    Args:
        ddf: shape (B, D, *S), voxels.
        max_iterations: upper bound on the number of iterations.
        tolerance: stop when no voxel is further than this from the identity, in voxels.
    Returns:
        The inverse displacement, shape (B, D, *S), voxels, and the residual, shape (B,): for each sample the largest
        distance from the identity of phi o phi_inverse over the grid, in voxels.
    References: Chen et al., Medical Physics 35(1), 2008.
    """
    _check_field(ddf)
    inverse = -at_least_float32(ddf)
    for iteration in range(max_iterations + 1):
        error = compose(ddf, inverse)
        residual = error.detach().square().sum(1).flatten(1).amax(1).sqrt()
        if iteration == max_iterations or residual.max() <= tolerance:
            break
        inverse = inverse - error
    return inverse, residual


def resize_field(field: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a field (displacement or velocity) onto another grid over the same extent and rescale its vectors.

    Convention: corners aligned, so axis i scales by (n_new - 1) / (n_old - 1), and so do the vectors along it.
    A field of 3 voxels on 9 voxels becomes one of 6 voxels on 17.

    Args:
        field: shape (B, D, *S), voxels of its grid.
        size: the new spatial size; axes may scale differently.
    Returns:
        Shape (B, D, *size), voxels of the new grid.
    Raises:
        ValueError: for a size of another number of axes.
    """
    _check_field(field)
    field = at_least_float32(field)
    old = field.shape[2:]
    if len(size) != len(old):
        raise ValueError(f"expected a size of {len(old)} axes, got {tuple(size)}")
    if tuple(size) == tuple(old):
        return field
    factors = [(new - 1) / (n - 1) if n > 1 and new > 1 else 1.0 for new, n in zip(size, old, strict=True)]
    scale = per_channel(factors, field)
    return repeatable.resize(field, size) * scale


def resize_map(values: Tensor, size: Sequence[int]) -> Tensor:
    """Bring scalar maps (B, C, *S) onto a grid of `size` voxels over the same extent, linearly; as they are if it is
    their own."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return repeatable.resize(values, size)


def spatial_gradient(field: Tensor) -> Tensor:
    """Partial derivatives by central differences, one-sided at the borders (as `numpy.gradient`).

    Args:
        field: shape (B, C, *S); a vector field or an image.
    Returns:
        Shape (B, C, D, *S): element [:, c, j] is the derivative of channel c along axis j, per voxel. An axis of one
        voxel has derivative 0.
    """
    field = at_least_float32(field)
    axes = range(2, field.ndim)
    return torch.stack(
        [torch.gradient(field, dim=a)[0] if field.shape[a] > 1 else torch.zeros_like(field) for a in axes], dim=2
    )


_LARGE = 2**21  # voxels: the derivatives of all take nine times the memory of an image


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the Jacobian of phi = id + ddf: the full determinant, in 2-D and 3-D.

    It is 1 for the identity, above 1 where the map expands, at most 0 where it folds. Voxel units suffice: rescaling
    the axes of a grid changes rows and columns of the Jacobian inversely and leaves the determinant as it is.

    Args:
        ddf: shape (B, D, *S), voxels.
    Returns:
        Shape (B, 1, *S).
    """
    _check_field(ddf)
    planes, width = ddf.shape[2], max(1, _LARGE // ddf.shape[3:].numel())
    if ddf.requires_grad or width >= planes:
        return _determinant(spatial_gradient(ddf))
    starts = range(0, planes, width)  # central differences need a plane more on each side
    slabs = [_determinant(spatial_gradient(ddf[:, :, max(start - 1, 0) : start + width + 1])) for start in starts]
    return torch.cat([slab[:, :, min(start, 1) :][:, :, :width] for start, slab in zip(starts, slabs, strict=True)], 2)


def _determinant(du: Tensor) -> Tensor:
    """Of the identity and a gradient (B, D, D, *S)."""
    if du.shape[1] == 2:
        return ((1 + du[:, 0, 0]) * (1 + du[:, 1, 1]) - du[:, 0, 1] * du[:, 1, 0]).unsqueeze(1)
    a, b, c = 1 + du[:, 0, 0], du[:, 0, 1], du[:, 0, 2]
    d, e, f = du[:, 1, 0], 1 + du[:, 1, 1], du[:, 1, 2]
    g, h, i = du[:, 2, 0], du[:, 2, 1], 1 + du[:, 2, 2]
    return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)).unsqueeze(1)


def pad_ends(values: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros at the ends of (B, C, *S), up to a size (*size) that is no smaller along any axis."""
    return F.pad(
        values, [w for n, m in zip(reversed(values.shape[2:]), reversed(size), strict=True) for w in (0, m - n)]
    )


def transform_points(points: Tensor, ddf: Tensor) -> Tensor:
    """Move points of the fixed space to the moving space: `p + ddf(p)`.

    Convention: points are voxel coordinates. To bring points of the *moving* image into the fixed space, give the
    inverse field.

    Args:
        points: shape (B, N, D), voxels.
        ddf: shape (B, D, *S), voxels.
    Returns:
        Shape (B, N, D), voxels.
    Raises:
        ValueError: for points of another shape.
    """
    _check_field(ddf)
    d = ddf.shape[1]
    if points.ndim != 3 or points.shape[2] != d:
        raise ValueError(f"expected points of shape (B, N, {d}), got {tuple(points.shape)}")
    locations = points.transpose(1, 2).reshape(points.shape[0], d, -1, *[1] * (d - 1))
    shift = sample(ddf, locations, padding="border")
    return points + shift.flatten(2).transpose(1, 2)


def _check_field(field: Tensor) -> None:
    d = field.ndim - 2
    if d not in (2, 3) or field.shape[1] != d:
        raise ValueError(f"expected a field of shape (B, 2, H, W) or (B, 3, D, H, W), got {tuple(field.shape)}")


def plain(value: Value) -> Value:
    """A MetaTensor without MONAI's metadata; anything else as it is."""
    return value.as_tensor() if hasattr(value, "as_tensor") else value


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else as float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """One number for each channel of (B, C, *S), to multiply it with: shape (1, C, 1, ...), of its type and device."""
    shape = (1, 1, *[1] * (like.ndim - 2))
    # Filled on the device: a tensor of a list is copied there, and the host waits for it.
    return torch.cat([like.new_full(shape, value) for value in values], 1)


def _scale(n: int) -> float:
    """From voxels to grid_sample's units along an axis of n voxels, which run from -1 to 1."""
    return 2 / (n - 1) if n > 1 else 1.0


def _normalized_grid(vectors: Tensor, image_size: Sequence[int], *, relative: bool) -> Tensor:
    """The grid that grid_sample wants, (B, *S, D): last axis first, corners at -1 and 1.

    Args:
        vectors: (B, D, *S), absolute locations in the image or, if `relative`, displacements from the grid's voxels.
    """
    d = vectors.shape[1]
    channels = []
    for i in reversed(range(d)):
        scale = _scale(image_size[i])
        base = vectors.new_full((), -1.0 if image_size[i] > 1 else 0.0)
        if relative:
            index = torch.arange(vectors.shape[i + 2], dtype=vectors.dtype, device=vectors.device)
            base = (index * scale + base).view(-1, *[1] * (d - 1 - i))
        channels.append(torch.add(base, vectors[:, i], alpha=scale))
    return torch.stack(channels, -1)


def _lookup(image: Tensor, vectors: Tensor, mode: str, padding: str, *, relative: bool) -> Tensor:
    if mode not in _MODES or padding not in ("zeros", "border"):
        raise ValueError(f"expected mode linear|nearest and padding zeros|border, got {mode!r} and {padding!r}")
    dtype = image.dtype
    if not dtype.is_floating_point:
        if mode != "nearest":
            raise ValueError(f"a label map of type {dtype} cannot be interpolated linearly: use mode='nearest'")
        # float32 holds integers up to 2**24 exactly, which is more than any label table in use.
        image = image.to(
            torch.float32 if dtype in (torch.bool, torch.uint8, torch.int8, torch.int16) else torch.float64
        )
    image, vectors = at_least_float32(image), at_least_float32(vectors)
    if vectors.dtype != image.dtype:
        common = torch.promote_types(image.dtype, vectors.dtype)
        image, vectors = image.to(common), vectors.to(common)
    grid = _normalized_grid(vectors, image.shape[2:], relative=relative)
    if grid.shape[0] != image.shape[0]:
        batch = max(grid.shape[0], image.shape[0])
        grid, image = grid.expand(batch, *grid.shape[1:]), image.expand(batch, *image.shape[1:])
    result = _grid_sample(image, grid, _MODES[mode], padding)
    return result if dtype.is_floating_point else result.to(dtype)


def _grid_sample(image: Tensor, grid: Tensor, mode: str, padding: str) -> Tensor:
    """`grid_sample` with aligned corners, for which a location that is not a number is no reason to crash.

    On the CPU grid_sample runs one thread per sample of the batch. A small batch is therefore cut into slabs along the
    grid's first axis, stacked as a batch over the same image: the same numbers, all threads at work.
    """
    if padding == "border" and torch.is_grad_enabled() and (image.requires_grad or grid.requires_grad):
        # torch makes an address of a NaN in its backward pass (2-D, CPU) and crashes. Let it read the first voxel:
        # the field itself keeps its NaN, by which a training notices. Numbers stay as they are.
        grid = grid.masked_fill(grid.isnan(), -1.0)
    batch = image.shape[0]
    slabs = torch.get_num_threads() if image.device.type == "cpu" else 1
    rows, rest = grid.shape[1], grid[0, 0].numel()
    if slabs < 2 or batch >= slabs or rows < slabs or rows * rest < 16384:
        return repeatable.grid_sample(image, grid, mode, padding)
    if rows % slabs:
        grid = torch.cat([grid, grid[:, -1:].expand(-1, slabs - rows % slabs, *grid.shape[2:])], 1)
    images = image.unsqueeze(1).expand(batch, slabs, *image.shape[1:]).flatten(0, 1)
    parts = repeatable.grid_sample(images, grid.unflatten(1, (slabs, -1)).flatten(0, 1), mode, padding)
    return parts.unflatten(0, (batch, slabs)).movedim(1, 2).flatten(2, 3).narrow(2, 0, rows)
