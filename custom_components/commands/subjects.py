"""Two subjects whose deformation is known, and the distance of a registration from it.

The subjects are made of the MNI152 T1 template and its grey- and white-matter maps, which the nilearn wheel carries:
two independent strong diffeomorphisms, two bias fields, two noises.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.phantoms import random_velocity
from ..fields import compose, integrate_velocity, resize_field, sample, warp
from ..results import publishing
from ..space.dialects import read_transform
from ..space.files import write_image
from ..space.resampling import transform_points_world
from ..space.volumes import load_image, load_labels
from ..synthesis.noise import smooth_noise

AMPLITUDE_MM = 12.0


NUM_POINTS = 20_000

# Paths by role: moving, fixed, label_moving, label_fixed.
Pair = dict[str, str]


def make_subjects(folder: Path, seed: int = 0, size: tuple[int, ...] | None = None) -> tuple[Pair, Tensor, np.ndarray]:
    """Write two subjects; returns their files as a pair, the true displacement and the grid's affine.

    Args:
        folder: gets `moving`, `fixed`, `label_moving`, `label_fixed` as .nii.gz, 1 mm, labels 1 grey and 2 white.
        seed: of the deformations and the rendering.
        size: crop the template's middle to this size (for tests).
    Returns:
        Pair (key to path), true displacement fixed to moving (1, 3, *S) in voxels, affine (4, 4).
    """
    image, tissues, affine = load_template()
    if size is not None:
        start = [(n - m) // 2 for n, m in zip(image.shape[2:], size, strict=True)]
        cut = (slice(None), slice(None), *[slice(a, a + m) for a, m in zip(start, size, strict=True)])
        image, tissues = image[cut], tissues[cut]
        affine[:3, 3] += affine[:3, :3] @ np.array(start)
    generator = torch.Generator().manual_seed(seed)
    full = image.shape[2:]
    half = [(n + 1) // 2 for n in full]
    velocities = [
        random_velocity(half, amplitude=AMPLITUDE_MM / 2, spacings=(10.0, 20.0), generator=generator) for _ in "ab"
    ]
    images: dict[str, Tensor] = {}
    maps = []
    for role, velocity in zip(("moving", "fixed"), velocities, strict=True):
        ddf = resize_field(integrate_velocity(velocity), full)
        maps.append((velocity, ddf))
        subject = render(warp(image, ddf), generator)
        shares = warp(tissues, ddf)
        label = torch.where(shares.amax(1) > 0.5, shares.argmax(1) + 1, 0)
        images |= {role: subject[0], f"label_{role}": label.to(torch.uint8)}
    with publishing(folder, "subjects") as scratch:
        for name, image in images.items():
            write_image(scratch / f"{name}.nii.gz", image, affine)
    # subject(x) = template(phi(x)); so the true map is phi_moving^-1 o phi_fixed.
    inverse = resize_field(integrate_velocity(-maps[0][0]), full)
    pair = {name: str(folder / f"{name}.nii.gz") for name in images}
    return pair, compose(inverse, maps[1][1]), affine


def load_template() -> tuple[Tensor, Tensor, np.ndarray]:
    """MNI152 T1 (1, 1, *S) in [0, 1], grey- and white-matter maps (1, 2, *S), affine (4, 4); 1 mm, from nilearn.

    Raises:
        ImportError: if nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError("the demo needs nilearn's MNI152 template: pip install 'morphzoo[demo]'") from error
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    images = [load(resolution=1) for load in loaders]
    volumes = torch.stack([torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32)) for image in images])
    return volumes[None, :1], volumes[None, 1:], np.array(images[0].affine, dtype=np.float64)


def render(image: Tensor, generator: torch.Generator) -> Tensor:
    """A scan of its own of the warped template: other contrast, bias field and noise; background 0."""
    bias = smooth_noise(image.shape[2:], 60, 0.1, generator).exp()
    exponent = float(torch.empty(1).uniform_(0.8, 1.25, generator=generator))
    noise = 0.02 * torch.randn(image.shape, generator=generator)
    return 1000 * ((image.clamp(min=0) ** exponent * bias + noise) * (image > 0.05)).clamp(min=0)


def dense_error_mm(
    truth: Tensor, affine: np.ndarray, transforms: Sequence[Path], label: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm, at random points of the tissue, of no registration and of the saved transform from the truth.

    Args:
        truth: displacement fixed to moving (1, 3, *S), voxels.
        affine: of its grid (4, 4), voxel to RAS mm.
        transforms: the saved ones from fixed to moving points, in the order in which they apply.
        label: label map whose tissue is looked at.
    """
    points = tissue_points(label)
    shift = truth[0][:, points[:, 0], points[:, 1], points[:, 2]].T.numpy()
    world = points.numpy() @ affine[:3, :3].T + affine[:3, 3]
    true_world = world + shift @ affine[:3, :3].T
    found = transform_points_world(world, [step for path in transforms for step in read_transform(path)])
    return np.linalg.norm(world - true_world, axis=1), np.linalg.norm(found - true_world, axis=1)


def tissue_points(label: Path) -> Tensor:
    """Voxels at random in a label map, the same at each call, shape (N, 3)."""
    inside = torch.nonzero(load_labels(str(label)).data[0] > 0)
    return inside[torch.randperm(len(inside), generator=torch.Generator().manual_seed(0))[:NUM_POINTS]]


def sd_correlation(error_mm: np.ndarray, sd: Path, affine: np.ndarray, label: Path) -> float:
    """Correlation coefficient of the error at the points of `dense_error_mm` with a written map of deviations."""
    volume = load_image(str(sd))
    to_voxels = np.linalg.inv(volume.affine) @ affine
    points = tissue_points(label).numpy() @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    locations = torch.from_numpy(points.T).float()[None, :, :, None, None]
    deviation = sample(volume.data[None], locations, padding="border").flatten().numpy()
    return float(np.corrcoef(error_mm, deviation)[0, 1])
