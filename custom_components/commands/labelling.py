"""Labels of heads from a bundle's atlases: each is registered to the head, and what they propose is fused."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_number
from ..notices import warn
from ..vocabulary import Item
from .bundles import DEFAULT_BUNDLE, atlases_of, overlay_path
from .registrar import Registrar

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.brain_extraction.atlases import Atlas
    from ..space.volumes import Volume

FUSION = "local"
LIKENESS = 0.8  # Dice of the labelled voxels and the network's mask, below which one of them is wrong


class Labelling:
    """Give heads in which a brain was found the labels that atlases propose.

    The affine stage takes torch's way, since ITK's lost more heads, and the refinement is short: eight quick atlases
    are worth more than few good ones.

    Args:
        bundle: folder of the bundle whose atlases these are.
        number: of atlases, from the first one.
        device: where they are registered; None: where there is a GPU, on it.
    Raises:
        ValueError: if the bundle has no or too few atlases, or no atlas is asked for.
    """

    def __init__(self, bundle: Path, number: int, device: str | None = None) -> None:
        check_number("atlases", number, least=1, whole=True)
        self.number, path = int(number), atlases_of(bundle)
        if path is None:
            raise ValueError(f"{bundle.name} has no atlases; --atlases 0 takes the labels of its network")
        self.path = path
        settings = {} if device is None else {"device": device}
        self.registrar = Registrar(
            DEFAULT_BUNDLE, overlay=overlay_path("propagate"), affine="torch", quality="fast", **settings
        )

    @cached_property
    def atlases(self) -> list[Atlas]:
        """The atlases, rendered. Raises FileNotFoundError, ValueError: as `read_atlases`."""
        from ..methods.brain_extraction.atlases import read_atlases

        return read_atlases(self.path, self.number)

    def __call__(self, item: Item) -> Item:
        """The item of a head with the label map (1, *S), uint8, under `pred`, and volumes in `measures`.

        Args:
            item: with `mask`, `image_path` and `measures`, as `HeadMapsd` gives it. Of an empty mask all labels are 0.
        """
        import torch
        from monai.data import MetaTensor

        from ..cohorts.fusion import fuse
        from ..methods.brain_extraction.structures import volumes_ml
        from ..transforms.scan_paths import ScanPath

        volume, mask = ScanPath.volume_of(item["image_path"]), item["mask"]
        pred = torch.zeros_like(mask)
        if mask.any():
            fused = fuse(*self.proposals(volume), volume.data[0], FUSION)
            pred = MetaTensor(fused.view(mask.shape), meta=mask.meta)
            _check_likeness(pred.as_tensor() > 0, mask.as_tensor() > 0, Path(volume.path).name)
        measures = item["measures"] | volumes_ml(pred, volume.file_affine)
        return {**item, "pred": pred, "measures": measures}

    def proposals(self, volume: Volume) -> tuple[Tensor, Tensor]:
        """The label maps (A, *S), uint8, and images (A, *S) of the atlases on the grid of a head in a file."""
        import torch
        from tqdm import tqdm

        from ..tasks import quiet

        size = volume.data.shape[1:]
        labels, images = torch.zeros(self.number, *size, dtype=torch.uint8), torch.zeros(self.number, *size)
        title = f"atlases of {Path(volume.path).name}"
        for k, atlas in enumerate(tqdm(self.atlases, desc=title, unit="atlas", leave=False)):
            with quiet():
                found = self.registrar(atlas.image, volume.path, label_moving=atlas.labels)
            labels[k], images[k] = (one.as_tensor().reshape(size) for one in (found.warped_label, found.warped))
        return labels, images


def _check_likeness(labelled: Tensor, brain: Tensor, name: str) -> None:
    """Warn if atlases and network, which know nothing of each other, see the brain in different places."""
    dice = 2 * float((labelled & brain).sum()) / max(1.0, float(labelled.sum() + brain.sum()))
    if dice < LIKENESS:
        warn(f"{name}: the atlases' labels and the brain mask overlap by a Dice of {dice:.2f} only: look at both")
