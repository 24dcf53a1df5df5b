"""Label maps that guide a pair's refinement, found in its images."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..vocabulary import Entry
from .bundles import find_bundle

if TYPE_CHECKING:
    from ..methods.brain_extraction.segmenter import BrainSegmenter

BUNDLE = "brain_extraction"


class LabelFinder:
    """Finds the brain's structures in both images of a pair, and keeps the network for the next pair.

    Args:
        device: where the network runs; None takes the GPU if there is one.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    @cached_property
    def segmenter(self) -> BrainSegmenter:
        import torch

        from ..methods.brain_extraction.segmenter import BrainSegmenter

        device = self.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        return BrainSegmenter(find_bundle(BUNDLE) / "models" / "model.pt", device=device)

    def __call__(self, pair: Entry) -> dict[str, object]:
        """`guide_moving` and `guide_fixed`, label maps on the images' own grids.

        Raises:
            ValueError: if an image is no 3-D head, or the pair names guides already.
        """
        from ..space.memory_images import source_of
        from ..space.volumes import load_image

        if any(f"guide_{role}" in pair for role in ("moving", "fixed")):
            raise ValueError("expected --guide labels, which finds label maps, or label maps that are given, not both")
        found: dict[str, object] = {}
        for role in ("moving", "fixed"):
            volume = load_image(pair[role])
            if len(volume.file_shape) < 3 or volume.is_slice:
                raise ValueError(f"{volume.path}: --guide labels finds structures in 3-D heads, got a slice")
            labels = self.segmenter.labels(volume.meta_tensor(volume.data))
            if not labels.any():
                raise ValueError(f"{volume.path}: no structure of a brain was found in it to guide the registration")
            found[f"guide_{role}"] = source_of(labels, f"labels of {volume.path}")
        return found
