"""The bundles there are, and what each can do: all of it stands in their own files."""

from __future__ import annotations

import functools
import json
import os
import sysconfig
from pathlib import Path

from ..checks import meant
from ..vocabulary import Config

PACKAGE = Path(__file__).resolve().parents[1]

DEFAULT_BUNDLE = "synthmorph"


def bundles_folder() -> Path:
    """The folder `bundles`: of the clone, of an installed wheel, or named by MORPHZOO_BUNDLES.

    Raises:
        FileNotFoundError: if there is none.
    """
    places = [os.environ.get("MORPHZOO_BUNDLES"), PACKAGE.parent / "bundles"]
    places.append(Path(sysconfig.get_path("data")) / "share" / "morphzoo" / "bundles")
    for place in places:
        if place and (Path(place) / "overlays").is_dir():
            return Path(place)
    raise FileNotFoundError(f"no folder of bundles in {', '.join(str(p) for p in places if p)}; set MORPHZOO_BUNDLES")


def all_bundles() -> list[Path]:
    """The folders of all bundles, by name."""
    return sorted(path.parent.parent for path in bundles_folder().glob("*/configs/inference.json"))


def find_bundle(name: str) -> Path:
    """Folder of a bundle, by name or by path. A folder here that is called like a bundle is `./NAME`.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    found = {folder.name: folder for folder in all_bundles()}
    if name in found:
        return found[name]
    if (Path(name) / "configs" / "inference.json").is_file():
        return Path(name)
    raise ValueError(f"there is no bundle {name!r}; there are {', '.join(found)}{meant(name, found)}")


def overlay_path(name: str) -> str:
    """Path of an overlay for all bundles, by its name without the ending."""
    return str(bundles_folder() / "overlays" / f"{name}.json")


def abilities(bundle: Path) -> Config:
    """What a bundle says it can do, in its metadata.json.

    Keys: `input`, "pair", "scan" where single scans are registered to a template of the bundle's own, "image" where
    single images are segmented and nothing is registered, "answer" where a registration is judged, or "series" where
    the frames of one are freed of motion; of the latter four `item`, an example of what it takes;
    `settings_from_weights`, a function from a checkpoint to the settings that follow from it; `aligner`, files of
    weights that align any pair ("learned"), by the number of spatial axes; `atlases`, a file of label maps that
    label what the bundle segments (`methods/brain_extraction/atlases.py`); `error_map`, an overlay that estimates the
    errors of other bundles' registrations; `offers`, words for settings of all bundles (`offered`).
    """
    return _read(bundle / "configs" / "metadata.json").get("abilities", {})


def takes_scans(bundle: Path) -> bool:
    """Whether a bundle registers single scans, each to its own template, instead of pairs."""
    return abilities(bundle).get("input", "pair") == "scan"


def segments(bundle: Path) -> bool:
    """Whether a bundle segments single images, and registers nothing."""
    return abilities(bundle).get("input", "pair") == "image"


def registers(bundle: Path) -> bool:
    """Whether a bundle registers, pairs or scans."""
    return abilities(bundle).get("input", "pair") in ("pair", "scan")


def instead_of_pairs(bundle: Path) -> str | None:
    """What a bundle that registers no pairs does, and the command for it; None if it registers them."""
    does = {
        "scan": "registers single scans to its template, not pairs: morphzoo atlas SCAN",
        "image": "segments images and registers none: morphzoo segment IMAGE",
        "answer": "judges registrations of other bundles: morphzoo register ... --error_map",
        "series": "corrects series of frames: morphzoo subtract SERIES --network",
    }
    return does.get(abilities(bundle).get("input", "pair"))


def atlases_of(bundle: Path) -> Path | None:
    """The atlases of a bundle that segments, or None."""
    name = abilities(bundle).get("atlases")
    return bundle / "models" / name if name else None


def references(bundle: Path) -> list[str]:
    """The papers of a bundle, its own first."""
    return list(_read(bundle / "configs" / "metadata.json")["references"])


def version_of(bundle: Path) -> str:
    """The version that a bundle's metadata state."""
    return str(_read(bundle / "configs" / "metadata.json")["version"])


def settings_of(bundle: Path) -> set[str]:
    """The ids of a bundle's inference.json."""
    return set(_read(bundle / "configs" / "inference.json"))


def aligner_weights(spatial_dims: int) -> Path:
    """The weights of the bundle that aligns pairs of any other.

    Raises:
        ValueError: if no bundle says that it does.
    """
    for bundle in all_bundles():
        files = abilities(bundle).get("aligner", {})
        if str(spatial_dims) in files:
            return bundle / "models" / files[str(spatial_dims)]
    raise ValueError(f"no bundle can align {spatial_dims}-D pairs: --affine learned is not possible")


def error_map_of(spatial_dims: int) -> tuple[Path, Path]:
    """The overlay that estimates the errors of registrations, and the weights of the bundle that has it.

    Raises:
        ValueError: if no bundle says that it does, or the images are not 3-D.
    """
    if spatial_dims != 3:
        raise ValueError(f"--error_map estimates the errors of 3-D registrations, not of {spatial_dims}-D ones")
    for bundle in all_bundles():
        name = abilities(bundle).get("error_map")
        if name:
            return bundle / "configs" / name, bundle / "models" / "model.pt"
    raise ValueError("no bundle estimates errors: --error_map is not possible")


def offered(setting: str, word: object, spatial_dims: int) -> tuple[list[str], dict[str, object]]:
    """The config files that a word for a setting of any bundle stands for, and the paths that go with them.

    A bundle offers them in its metadata.json: {"similarity": {"learned": {"overlay": "learned", "weights":
    {"similarity_weights": {"2": FILE, "3": FILE}}}}}: the name of a file in its `configs`, and files below its folder.

    Raises:
        ValueError: if it is offered, and not for this dimension.
    """
    for root in _offering():
        entry = abilities(root).get("offers", {}).get(setting, {}).get(str(word))
        if entry is None:
            continue
        paths = dict[str, object]()
        for name, files in entry["weights"].items():
            if str(spatial_dims) not in files:
                raise ValueError(f"--{setting} {word}: there are no weights for {spatial_dims}-D images")
            paths[name] = str((root / files[str(spatial_dims)]).resolve())
        return [str(root / "configs" / f"{entry['overlay']}.json")], paths
    return [], {}


def words_offered(setting: str) -> list[str]:
    """The words for a setting that bundles offer to all others: see `offered`."""
    found = [abilities(bundle).get("offers", {}).get(setting, {}) for bundle in _offering()]
    return [word for words in found for word in words]


def those_with(setting: str) -> str:
    """The bundles that have a setting, as the end of a sentence: "A and B have"; empty if there is none."""
    return _sentence([bundle.name for bundle in all_bundles() if setting in settings_of(bundle)])


def those_that_take_scans() -> str:
    """The bundles with a template, as the end of a sentence."""
    return _sentence([bundle.name for bundle in all_bundles() if takes_scans(bundle)])


def _offering() -> list[Path]:
    """All folders of bundles, those without a registration of their own, too."""
    return [path.parents[1] for path in sorted(bundles_folder().glob("*/configs/metadata.json"))]


def _sentence(names: list[str]) -> str:
    if len(names) < 2:
        return f"{names[0]} has" if names else ""
    return f"{', '.join(names[:-1])} and {names[-1]} have"


@functools.lru_cache(maxsize=64)
def _parse(path: Path, changed_ns: int) -> Config:
    return json.loads(path.read_text(encoding="utf-8"))


def _read(path: Path) -> Config:
    return _parse(path, path.stat().st_mtime_ns)
