"""Image similarities as losses: smaller values mean more similar images.

Every similarity is a module called as `similarity(warped, fixed, mask)`: images (B, C, *S) and an optional weight map
(B, 1, *S) or (B, C, *S), 0 where voxels must not count. It returns a scalar tensor, the mean over the (masked) voxels,
computed in float32 also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_BOX_AT_ONCE = 2**18  # larger volumes are summed one by one: their temporaries stay in cache


def box_sum(image: Tensor, window: int) -> Tensor:
    """Sum over a cubic neighbourhood, voxels outside the image counting as 0.

    Separable; along each axis sums of 1, 2, 4, ... voxels are built by doubling, so the cost grows with the logarithm
    of the window, and no running sum drifts.

    Args:
        image: shape (B, C, *S).
        window: odd edge length in voxels.
    Returns:
        Shape (B, C, *S).
    """
    if image[0, 0].numel() > _BOX_AT_ONCE and image.shape[0] * image.shape[1] > 1:
        flat = image.reshape(-1, 1, 1, *image.shape[2:])
        return torch.stack([box_sum(one, window) for one in flat]).reshape(image.shape)
    radius = window // 2
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        shape = list(image.shape)
        shape[axis] = n + 2 * radius
        partial = image.new_zeros(shape)
        partial.narrow(axis, radius, n).copy_(image)
        total: Tensor | None = None
        # partial[i] is the sum of `width` voxels from i on. The window is cut into pieces as long as its binary digits
        # say, each beginning where the last one ended: 9 = 1 + 8 takes three doublings and one addition.
        width, offset, remaining = 1, 0, window
        while True:
            if remaining & 1:
                piece = partial.narrow(axis, offset, n)
                total = piece if total is None else total + piece
                offset += width
            remaining >>= 1
            if not remaining:
                break
            length = partial.shape[axis] - width
            partial = partial.narrow(axis, 0, length) + partial.narrow(axis, width, length)
            width *= 2
        assert total is not None
        image = total
    return image


def _box_count(like: Tensor, window: int) -> Tensor:
    """Number of voxels of each neighbourhood that lie inside the image, shape (1, 1, *S)."""
    radius = window // 2
    count = like.new_ones([1] * like.ndim)
    for axis in range(2, like.ndim):
        n = like.shape[axis]
        index = torch.arange(n, device=like.device)
        along = (index + radius).clamp(max=n - 1) - (index - radius).clamp(min=0) + 1
        shape = [1] * like.ndim
        shape[axis] = n
        count = count * along.to(like.dtype).view(shape)
    return count


class _CorrelationContext(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    window: int
    needs_input_grad: tuple[bool, ...]


class _SquaredLocalCorrelation(torch.autograd.Function):
    """cov(a, b)^2 / ((var a + floor) (var b + floor)) in each window, with its derivative in closed form."""

    @staticmethod
    def forward(
        ctx: _CorrelationContext, a: Tensor, b: Tensor, weight: Tensor | None, window: int, floor: float
    ) -> Tensor:
        # Correlations do not see a shift; without the mean the differences of squares below keep their digits.
        axes = tuple(range(2, a.ndim))
        a, b = a - a.mean(axes, keepdim=True), b - b.mean(axes, keepdim=True)
        wa, wb = (a, b) if weight is None else (a * weight, b * weight)
        if weight is None:
            inverse_count = 1 / _box_count(a, window)
        else:
            count = box_sum(weight.expand(a.shape[0], -1, *a.shape[2:]), window)
            inverse_count = (1 / count.clamp(min=1e-3)).masked_fill(count <= 1e-3, 0)
        mean_a = box_sum(wa, window).mul_(inverse_count)
        mean_b = box_sum(wb, window).mul_(inverse_count)
        cov = box_sum(wa * b, window).mul_(inverse_count).addcmul_(mean_a, mean_b, value=-1)
        var_a = box_sum(wa * a, window).mul_(inverse_count).addcmul_(mean_a, mean_a, value=-1)
        var_b = box_sum(wb * b, window).mul_(inverse_count).addcmul_(mean_b, mean_b, value=-1)
        var_a, var_b = var_a.clamp_(min=0).add_(floor), var_b.clamp_(min=0).add_(floor)
        # torch's stub forgets that it takes None, too.
        ctx.save_for_backward(a, b, weight, mean_a, mean_b, cov, var_a, var_b, inverse_count)  # type: ignore[arg-type]
        ctx.window = window
        return cov.square().div_(var_a).div_(var_b)

    @staticmethod
    @once_differentiable
    def backward(ctx: _CorrelationContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, weight, mean_a, mean_b, cov, var_a, var_b, inverse_count = ctx.saved_tensors
        alpha = (2 * grad * inverse_count) * cov / (var_a * var_b)
        box_alpha = box_sum(alpha, ctx.window)

        def gradient(x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, var_x: Tensor) -> Tensor:
            beta = alpha * cov / var_x
            constant = box_sum(torch.addcmul(beta * mean_x, alpha, mean_y, value=-1), ctx.window)
            out = constant.addcmul_(y, box_alpha).addcmul_(x, box_sum(beta, ctx.window), value=-1)
            return out if weight is None else out * weight

        grad_a = gradient(a, b, mean_a, mean_b, var_a) if ctx.needs_input_grad[0] else None
        grad_b = gradient(b, a, mean_b, mean_a, var_b) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b, None, None, None


def local_correlation(a: Tensor, b: Tensor, mask: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Signed correlation in each window over the voxels of a mask, and the smaller of both variances.

    Args:
        a, b: shape (B, 1, *S). mask: 0 or 1, of the same shape.
    Returns:
        Two tensors (B, 1, *S), of a window's centre; 0 where the mask leaves it empty.
    """
    count = box_sum(mask, window).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return box_sum(values * mask, window) / count

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = (mean(a * a) - mean_a**2).clamp(min=0), (mean(b * b) - mean_b**2).clamp(min=0)
    covariance = mean(a * b) - mean_a * mean_b
    return covariance / ((var_a + 1e-5) * (var_b + 1e-5)).sqrt(), torch.minimum(var_a, var_b)


class LNCC(nn.Module):
    """Local normalised cross-correlation, squared, in a sliding window: 1 - mean(cov^2 / (var var)), in [0, 1].

    Invariant to a locally linear change of intensity; blind to its sign (inverted contrast is a perfect match). Windows
    are cut at the image border and at the mask (statistics over what lies inside), flat windows count as uncorrelated.
    The cost hardly depends on the window.

    Args:
        window: odd edge length in voxels.
        floor: added to both variances, in squared intensity units (for images in [0, 1]): contrast below its square
            root counts as noise.
    Raises:
        ValueError: for a window that is even, or smaller than 3.
    References: Avants et al., Medical Image Analysis 12(1), 2008; window 9 and the squared form as in Balakrishnan et
        al., IEEE TMI 38(8), 2019 (which reports -mean(cc), that is this value minus 1).
    """

    def __init__(self, window: int = 9, floor: float = 1e-5) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"expected an odd window of at least 3 voxels, got {window}")
        self.window, self.floor = window, floor

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        cc = _SquaredLocalCorrelation.apply(warped, fixed, mask, self.window, self.floor)
        return 1 - masked_mean(cc, mask)


class MSE(nn.Module):
    """Mean squared difference over sigma squared: mean((warped - fixed)^2) / sigma^2, without a factor 1/2.

    Args:
        sigma: standard deviation of the image noise, in intensity units.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        return masked_mean((warped - fixed).square(), mask) / self.sigma**2


class MutualInformation(nn.Module):
    """Negative mutual information (MONAI's Parzen-window estimate) on a random subset of the voxels.

    Args:
        num_bins: histogram bins over [0, 1], the range the images must have.
        num_samples: voxels drawn for each call and sample of the batch; the estimate's memory is bins * samples. All
            voxels if there are fewer.
        seed: the same subset is drawn at each call if given; a new one from torch's global generator if None.
    """

    def __init__(self, num_bins: int = 32, num_samples: int = 50_000, seed: int | None = None) -> None:
        super().__init__()
        self.num_samples, self.seed = num_samples, seed
        self.mutual_information = GlobalMutualInformationLoss(num_bins=num_bins, kernel_type="gaussian")

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        generator = None if self.seed is None else torch.Generator(warped.device).manual_seed(self.seed)
        losses = []
        for i in range(warped.shape[0]):
            inside = None if mask is None else (mask[i if mask.shape[0] > 1 else 0, 0] > 0.5).flatten()
            pair = torch.stack([warped[i].flatten(1), fixed[i].flatten(1)])
            pair = pair if inside is None else pair[:, :, inside]
            if pair.shape[2] > self.num_samples:
                drawn = torch.randint(pair.shape[2], (self.num_samples,), device=pair.device, generator=generator)
                pair = pair[:, :, drawn]
            losses.append(self.mutual_information(pair[:1], pair[1:]))
        return torch.stack(losses).mean()


class MIND(nn.Module):
    """Mean squared difference of self-similarity context descriptors: for images of different contrast.

    A voxel's descriptor compares the patches around its direct neighbours with one another, for all pairs of neighbours
    along different axes (12 in 3-D, 4 in 2-D): exp(-(d - min d) / mean d), d being the patches' mean squared
    difference. It describes the structure around the voxel, whatever intensities show it. With a mask only voxels count
    whose patches lie within it.

    Args:
        dilation: distance of the neighbours in voxels.
        window: odd edge length of the patches.
        floor: lower bound of the mean d, in squared intensity units: contrast below its square root counts as noise.
    References: Heinrich et al., Medical Image Analysis 16(7), 2012; MICCAI 2013 (self-similarity context).
    """

    def __init__(self, dilation: int = 2, window: int = 3, floor: float = 1e-4) -> None:
        super().__init__()
        self.dilation, self.window, self.floor = dilation, window, floor

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        warped, fixed, mask = checked_images(warped, fixed, mask)
        distance = (self.descriptor(warped) - self.descriptor(fixed)).square().mean(1, keepdim=True)
        return masked_mean(distance, None if mask is None else self._inner(mask))

    def _inner(self, mask: Tensor) -> Tensor:
        """A mask without the voxels whose descriptor sees something outside of it."""
        reach = 2 * (self.dilation + self.window // 2) + 1
        return mask * (box_sum(mask, reach) > 0.99 * _box_count(mask, reach))

    def descriptor(self, image: Tensor) -> Tensor:
        """Self-similarity context of (B, C, *S): (B, C * P, *S), in (0, 1]."""
        axes = range(2, image.ndim)
        neighbours = {(axis, sign): _shift(image, axis, sign * self.dilation) for axis in axes for sign in (-1, 1)}
        inverse_count = 1 / _box_count(image, self.window)
        distances = torch.stack(
            [
                box_sum((neighbours[a] - neighbours[b]).square(), self.window) * inverse_count
                for a in neighbours
                for b in neighbours
                if a[0] < b[0]
            ],
            2,
        )
        distances = distances - distances.amin(2, keepdim=True)
        spread = distances.mean(2, keepdim=True).clamp(min=self.floor)
        return torch.exp(-distances / spread).flatten(1, 2)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, C, *S) over the voxels, weighted by a mask (B or 1, 1 or C, *S); 0 if the mask is empty."""
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp(min=1e-6)


def checked_images(a: Tensor, b: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two images (B, C, *S) and a mask on their grid in float32, or float64 if the first is.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"expected two images of equal shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if mask is not None and mask.shape[2:] != a.shape[2:]:
        raise ValueError(f"expected a mask of size {tuple(a.shape[2:])}, got {tuple(mask.shape[2:])}")
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    return a.to(dtype), b.to(dtype), None if mask is None else mask.to(dtype)


def _shift(image: Tensor, axis: int, step: int) -> Tensor:
    """image(x + step) along an axis, border values continued."""
    n = image.shape[axis]
    return image.index_select(axis, (torch.arange(n, device=image.device) + step).clamp(0, n - 1))


class SimilaritySum(nn.Module):
    """Weighted sum of similarities: for instance LNCC, which finds edges whatever the brightness, and MSE, which fixes
    the brightness of a learned template.

    Args:
        similarities: each called as `similarity(warped, fixed, mask)`.
        weights: one for each.
    Raises:
        ValueError: if the numbers differ.
    """

    def __init__(self, similarities: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if len(similarities) != len(weights) or not weights:
            raise ValueError(f"expected a weight for each similarity, got {len(similarities)} and {len(weights)}")
        self.similarities, self.weights = nn.ModuleList(similarities), list(weights)

    def forward(self, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = [w * s(warped, fixed, mask) for s, w in zip(self.similarities, self.weights, strict=True)]
        return torch.stack(parts).sum()


def multi_kernel_lncc(size: Sequence[int]) -> SimilaritySum:
    """LNCC in windows of several sizes, which follow the images' shortest side S: at least 128 voxels, S/16, S/8, S/4
    with weights 0.1, 0.3, 0.6; at least 64, S/4, S/2 with 0.3, 0.7; else S/2. Rounded down to odd numbers, at least 3.

    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019; windows and
        weights are those of the authors' code, which dilates the windows to twice their size, moves them in steps and
        leaves the border out.
    """
    shortest = min(size)
    shares = {2: 1.0}
    if shortest >= 128:
        shares = {16: 0.1, 8: 0.3, 4: 0.6}
    elif shortest >= 64:
        shares = {4: 0.3, 2: 0.7}
    return SimilaritySum([LNCC(max(3, (shortest // n - 1) // 2 * 2 + 1)) for n in shares], list(shares.values()))
