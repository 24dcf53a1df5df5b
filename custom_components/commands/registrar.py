"""A bundle's registration as an object: loaded once, for as many pairs as there are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..vocabulary import Entry
from .bundles import DEFAULT_BUNDLE, find_bundle
from .loaded import Loaded
from .workflow import as_list, check_files, check_settings, check_takes_pairs, results_in

if TYPE_CHECKING:
    from ..evaluation.result import Failure, Registration
    from ..space.memory_images import Image

    Pair = Mapping[str, Image] | tuple[Image, Image]


class Registrar:
    """Register pairs with a bundle, whose configuration and network are loaded once, at the first pair.

    Called as `registrar(moving, fixed)`. Nothing is written unless an output folder is given, or a result's `save` is
    called. Random numbers are the bundle's own: each pair has the same ones, and the program's are not touched.

    Args:
        bundle: name of a bundle, or its folder.
        overlay: further config files, the last one wins.
        **settings: as those of `register`: `optimize`, `affine`, `spacing`, `device`, ...
    Raises:
        ValueError: if there is no such bundle or setting, or the bundle registers single scans to a template.
    """

    def __init__(self, bundle: str = DEFAULT_BUNDLE, *, overlay: str | Sequence[str] = (), **settings: object) -> None:
        self.bundle, self.overlays, self.settings = find_bundle(bundle), as_list(overlay), settings
        check_takes_pairs(self.bundle)
        check_settings(self.bundle, self.overlays, settings, 3)
        self._loaded: dict[int, Loaded] = {}

    def __call__(
        self,
        moving: Image,
        fixed: Image,
        output: str | os.PathLike[str] | None = None,
        *,
        id: str | None = None,
        label_moving: Image | None = None,
        label_fixed: Image | None = None,
        mask_moving: Image | None = None,
        mask_fixed: Image | None = None,
        guide_moving: Image | None = None,
        guide_fixed: Image | None = None,
        channel_weights: Sequence[float] | None = None,
        landmarks_moving: str | os.PathLike[str] | None = None,
        landmarks_fixed: str | os.PathLike[str] | None = None,
        affine: str | None = None,
    ) -> Registration:
        """Register one pair.

        Args:
            moving, fixed, label_moving, label_fixed, mask_moving, mask_fixed, guide_moving, guide_fixed: as in
                `register`: a path, an image of nibabel or ITK, a MetaTensor (C, *S), or (array, affine); or a list of
                channels of one person.
            channel_weights: how much each channel counts in the refinement.
            landmarks_moving, landmarks_fixed: files of points or label maps.
            affine: what aligns this pair, in place of the setting.
            output: folder for the results; None writes nothing.
            id: name of the result; default <fixed>__<moving>.
        Raises:
            FileNotFoundError: if a file or the weights are missing.
            OSError: if the folder cannot be written to, or holds another pair's result of that name.
            ValueError: with one sentence, if an image is none, or the two do not go together.
        """
        from ..space.memory_images import channels_of, sources_of
        from ..space.volumes import spatial_dims_of

        images = {"label_moving": label_moving, "label_fixed": label_fixed}
        images |= {"mask_moving": mask_moving, "mask_fixed": mask_fixed}
        images |= {"guide_moving": guide_moving, "guide_fixed": guide_fixed}
        pair: Entry = dict(sources_of(images))
        for role, image in (("moving", moving), ("fixed", fixed)):
            first, *others = channels_of(as_list(image) if isinstance(image, str) else image, role)
            pair |= {role: first} | ({f"channels_{role}": others} if others else {})
        pair |= {} if channel_weights is None else {"channel_weights": channel_weights}
        landmarks = {"landmarks_moving": landmarks_moving, "landmarks_fixed": landmarks_fixed}
        pair |= {key: os.path.abspath(path) for key, path in landmarks.items() if path is not None}
        check_files([pair])
        pair |= {key: value for key, value in (("id", id), ("affine", affine)) if value is not None}
        loaded = self._load(spatial_dims_of(pair["fixed"]))
        if output is None:
            return loaded.register(pair)
        with results_in(output, [pair]):
            return loaded.register(pair).save(output)

    def pairs(
        self, pairs: Iterable[Pair], output: str | os.PathLike[str] | None = None, *, tolerant: bool = True
    ) -> Iterator[Registration | Failure]:
        """Register pairs one after the other; each is taken when its turn comes, and its result given at once.

        Args:
            pairs: each (moving, fixed), or a dictionary of the arguments of a call.
            output: folder for the results; the memory then holds one pair at a time.
            tolerant: go on after a pair that cannot be registered; False: end with its error.
        Yields:
            A result for each pair, in their order; with a folder, it reads its images from its files. For a pair that
            cannot be registered a `Failure`, whose `reason` is one sentence.
        Raises: without `tolerant`, as for one pair.
        """
        from ..evaluation.result import Failure
        from ..runs import sentence

        for number, pair in enumerate(pairs, start=1):
            images = dict(pair) if isinstance(pair, Mapping) else dict(zip(("moving", "fixed"), pair, strict=True))
            try:
                result = self(**images, output=output)  # type: ignore[arg-type]
            except (OSError, ValueError, RuntimeError) as error:
                if not tolerant:
                    raise
                yield Failure(str(images.get("id", f"pair {number}")), images, sentence(error))
            else:
                yield result if output is None else result.in_files()

    def __getstate__(self) -> dict[str, object]:
        """Without what is loaded: another process loads its own."""
        return {**vars(self), "_loaded": {}}

    def _load(self, spatial_dims: int) -> Loaded:
        if spatial_dims not in self._loaded:
            self._loaded[spatial_dims] = Loaded.of(self.bundle, spatial_dims, self.overlays, self.settings)
        return self._loaded[spatial_dims]
