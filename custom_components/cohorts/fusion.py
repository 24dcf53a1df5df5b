"""One label map out of those that several atlases propose for the same image.

Everything lies on the image's own grid: `labels` (A, *S), integer, and `images` (A, *S), the atlases' images warped
onto it, `target` (*S). Where the atlases agree, the answer is theirs; only elsewhere they are weighed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

FUSIONS = ("best", "majority", "local", "joint", "staple")

_RADIUS = 2  # of a patch, voxels
_ALPHA = 0.1  # added to the diagonal, as in Wang et al.
_CHUNK = 100_000  # voxels that are weighed at once


def fuse(labels: Tensor, images: Tensor, target: Tensor, fusion: str = "joint") -> Tensor:
    """The label of each voxel.

    Args:
        labels: shape (A, *S).
        images: shape (A, *S), in any units.
        target: shape (*S).
        fusion: "best", the atlas whose image correlates best with the target; "majority"; "local" and "joint", votes
            weighted by how like the target an atlas is in a patch of 5 voxels, see `local_weights` and `joint_weights`;
            "staple", by how well each atlas agrees with the consensus, label by label (needs itk).
    Raises:
        ValueError: for another fusion.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"expected --fusion {', '.join(FUSIONS)}, got {fusion!r}")
    if fusion == "best":
        inside = (labels > 0).any(0)
        scores = [_correlation(image[inside], target[inside]) for image in images]
        return labels[int(torch.stack(scores).argmax())]
    is_open = (labels != labels[:1]).any(0)
    result = labels[0].clone()
    if not is_open.any():
        return result
    box = _box_of(is_open)
    labels, images, is_open = labels[(slice(None), *box)], images[(slice(None), *box)], is_open[box]
    if fusion == "staple":
        votes = _staple(labels)[is_open]
    else:
        choices = labels[:, is_open]
        votes = _most(choices, _WEIGHTS[fusion](images, target[box], is_open))
    result[box][is_open] = votes
    return result


def local_weights(images: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """One over the squared difference in a patch about each voxel (Artaechevarria et al., IEEE TMI 28(8), 2009).

    Images are first brought to mean 0 and SD 1 about each voxel, so their contrast may differ in strength.

    Args:
        images, target: (A, *S) and (*S). where: (*S), bool, N voxels of which are True.
    Returns:
        Shape (A, N), each column of sum 1.
    """
    differences = _differences(images, target)
    weights = torch.stack([1 / (_patch_mean(one * one)[where] ** 2 + _ALPHA) for one in differences])
    return weights / weights.sum(0)


def joint_weights(images: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Joint label fusion: atlases that err alike share their weight (Wang et al., IEEE TPAMI 35(3), 2013).

    With M(i, j) = (the mean in a patch of |A_i - T| |A_j - T|)^2 and alpha = 0.1 the weights are (M + alpha)^-1 1 of
    sum 1. Other than in the paper, images have mean 0 and SD 1 about each of a patch's voxels, not in the patch,
    patches are not searched for nearby (the registration did), and no weight is negative. Arguments and result as of
    `local_weights`.
    """
    differences = _differences(images, target)
    count = len(images)
    errors = images.new_zeros(int(where.sum()), count, count)
    for i in range(count):
        for j in range(i + 1):
            errors[:, i, j] = errors[:, j, i] = _patch_mean(differences[i] * differences[j])[where] ** 2
    errors += _ALPHA * torch.eye(count)
    ones = torch.ones(count, 1)
    weights = torch.cat([torch.linalg.solve(part, ones.expand(len(part), -1, -1)) for part in errors.split(_CHUNK)])
    weights = weights[..., 0].T.clamp_min(0)
    return weights / weights.sum(0)


def _equal_weights(images: Tensor, target: Tensor, where: Tensor) -> Tensor:
    return images.new_ones(len(images), int(where.sum()))


_WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "majority": _equal_weights,
    "local": local_weights,
    "joint": joint_weights,
}


def _most(choices: Tensor, weights: Tensor) -> Tensor:
    """Of choices (A, N) those with most of the weight (A, N), shape (N,); of equal ones the smallest."""
    found, most = torch.zeros_like(choices[0]), weights.new_full(choices.shape[1:], -1)
    for label in choices.unique():
        votes = (weights * (choices == label)).sum(0)
        found, most = torch.where(votes > most, label, found), torch.maximum(votes, most)
    return found


def _staple(labels: Tensor) -> Tensor:
    """The most likely label of each voxel by STAPLE (Warfield et al., IEEE TMI 23(7), 2004), each label by itself."""
    import itk

    found, most = torch.zeros_like(labels[0]), torch.zeros(labels.shape[1:])
    for label in labels.unique():
        mine = labels == label
        disputed = mine.any(0) & ~mine.all(0)
        if not disputed.any():
            continue
        box = _box_of(disputed)  # what is far away would only make all atlases look alike
        masks = [itk.image_from_array(one[box].float().numpy()) for one in mine]
        staple = itk.STAPLEImageFilter[type(masks[0]), type(masks[0])].New(ForegroundValue=1, MaximumIterations=50)
        for k, mask in enumerate(masks):
            staple.SetInput(k, mask)
        staple.Update()
        share = torch.from_numpy(itk.array_from_image(staple.GetOutput()))
        found[box] = torch.where(share > most[box], label, found[box])
        most[box] = torch.maximum(share, most[box])
    return found


def _differences(images: Tensor, target: Tensor) -> Tensor:
    target = _standardized(target.float())
    return torch.stack([(_standardized(image.float()) - target).abs() for image in images])


def _standardized(image: Tensor) -> Tensor:
    centred = image - image.mean()
    mean = _patch_mean(centred)
    variance = (_patch_mean(centred * centred) - mean * mean).clamp_min(0)
    floor = 1e-3 * float(centred.var()) + 1e-12  # no noise of the air is as good as tissue
    return (centred - mean) / (variance + floor).sqrt()


def _patch_mean(image: Tensor) -> Tensor:
    """The mean (*S) in a patch about each voxel, of those voxels of it that are there."""
    pool = functional.avg_pool3d if image.ndim == 3 else functional.avg_pool2d
    return pool(image[None, None], 2 * _RADIUS + 1, 1, _RADIUS, count_include_pad=False)[0, 0]


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float() - a.float().mean(), b.float() - b.float().mean()
    return (a @ b) / (a.norm() * b.norm() + 1e-12)


def _box_of(where: Tensor) -> tuple[slice, ...]:
    """The box about all True voxels, and as much more as their patches see."""
    places = where.nonzero()
    reach = 2 * _RADIUS
    return tuple(
        slice(max(0, int(low) - reach), int(high) + reach + 1)
        for low, high in zip(places.amin(0), places.amax(0), strict=True)
    )
