"""What is written in each bundle: metadata, configs, overlays. A folder in bundles/ is found by itself."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bundle_cases import BUNDLES, EVERY_BUNDLE, OVERLAYS, REPOSITORY, read_json
from monai.bundle import ConfigParser

from benchmarks.sidecar import KEYS, configured
from custom_components.commands.bundles import abilities
from custom_components.weights import digest, sidecar_path

pytestmark = pytest.mark.filterwarnings("ignore")
README = REPOSITORY / "README.md"
WEIGHTS = sorted(REPOSITORY.glob("bundles/*/models/*.pt"))
SCHEMA = REPOSITORY / "tests" / "data" / "meta_schema_20240725.json"
SCHEMA_SHA256 = "341be94f63b0341bb8267d56a862879f13546fd542ea501054763d0dc27c55be"


bundles = EVERY_BUNDLE


def configs_of(bundle: Path) -> list[Path]:
    return [path for path in sorted((bundle / "configs").glob("*.json")) if path.name != "metadata.json"]


def targets_in(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        target = config.get("_target_")
        if isinstance(target, str) and not target.startswith("$@"):  # else a method of a component
            yield target
        yield from (name for value in config.values() for name in targets_in(value))
    elif isinstance(config, list):
        yield from (name for value in config for name in targets_in(value))


@cache
def imports(target: str) -> bool:
    if "." not in target:  # a bare name is looked up in MONAI
        from monai.bundle.config_item import ComponentLocator

        return ComponentLocator(excludes=["testing", "apps"]).get_component_module_name(target) is not None
    module, _, name = target.rpartition(".")
    return hasattr(importlib.import_module(module), name)


def test_there_is_a_bundle():
    assert EVERY_BUNDLE


def test_metadata_follow_the_schema(bundle):
    jsonschema = pytest.importorskip("jsonschema")
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() == SCHEMA_SHA256
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert metadata["schema"].endswith(SCHEMA.name)
    jsonschema.validate(metadata, read_json(SCHEMA))


def test_version_is_in_the_changelog(bundle):
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize("name", ["network_def", "deformation"])
def test_training_and_inference_have_the_same(bundle, name):
    train_config, inference = (read_json(bundle / "configs" / f"{job}.json") for job in ("train", "inference"))
    assert train_config.get(name) == inference.get(name)


def content(path: Path) -> list[str]:
    """The lines of a file that say something: no bare brackets."""
    return [line.strip() for line in path.read_text().splitlines() if any(c.isalnum() for c in line)]


def test_no_line_of_a_config_is_longer_than_120_characters():
    """The texts of metadata and sidecars are whole sentences; JSON cannot break a string."""
    configs = [path for path in sorted((REPOSITORY / "bundles").rglob("*.json")) if path.parent.name != "models"]
    paths = [path for path in configs if path.name != "metadata.json"]
    lines = [(path, line) for path in paths for line in path.read_text().splitlines()]
    assert [(path, line) for path, line in lines if len(line) > 120] == []


def test_training_configs_are_short():
    configs = {bundle.name: bundle / "configs" / "train.json" for bundle in EVERY_BUNDLE}
    lengths = {name: len(path.read_text().splitlines()) for name, path in configs.items()}
    assert sum(lengths.values()) / len(lengths) <= 78, lengths
    assert lengths["voxelmorph"] <= 68


def test_training_configs_share_components_and_not_lines():
    """The share of lines that stand verbatim in another bundle's train.json."""
    lines = {bundle.name: content(bundle / "configs" / "train.json") for bundle in EVERY_BUNDLE}
    pasted = {
        name: sum(any(line in lines[other] for other in lines if other != name) for line in own)
        for name, own in lines.items()
    }
    assert sum(pasted.values()) <= 0.53 * sum(len(own) for own in lines.values()), pasted


def test_every_target_in_the_configs_imports(bundle):
    names = {
        name for path in configs_of(bundle) + sorted(OVERLAYS.glob("*.json")) for name in targets_in(read_json(path))
    }
    assert names
    assert [name for name in sorted(names) if not imports(name)] == []


def test_every_id_an_overlay_overrides_exists(bundle):
    pairs = (("smoke", "train"), ("rendered", "train"), ("multi_gpu", "train"), ("evaluate", "inference"))
    for overlay, base in pairs:
        if bundle not in BUNDLES and overlay in ("rendered", "evaluate"):
            continue  # they are about pairs
        parser = ConfigParser(read_json(bundle / "configs" / f"{base}.json"))
        for name in read_json(OVERLAYS / f"{overlay}.json"):
            parent = name.rpartition("#")[0]
            assert not parent or parent in parser, f"{overlay}.json overrides {name}, and {base}.json has no {parent}"


def test_a_training_does_not_replace_the_shipped_weights(bundle):
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    parser["bundle_root"] = str(bundle)
    shipped = bundle / "models"
    for name in ("ckpt_dir", "output_dir"):
        folder = Path(parser.get_parsed_content(name))
        assert shipped not in (folder, *folder.parents)


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_shipped_weights_have_a_sidecar_of_their_own(weights):
    sidecar = json.loads(sidecar_path(weights).read_text())
    assert list(sidecar) == [*KEYS, "state"]
    assert sidecar["state"] == digest(weights), f"python -m benchmarks.sidecar {weights}"
    known = set(KEYS) - {"hyper_names", "deformation"}  # not every network has them
    if abilities(weights.parents[1]).get("input") == "series":
        assert sidecar["spacing"] is None  # a series is in pixels, whose size nobody tells
        known -= {"spacing"}
    assert [key for key in known if sidecar[key] is None] == []


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_a_sidecar_says_what_the_configuration_of_its_weights_says(weights):
    sidecar, settings = json.loads(sidecar_path(weights).read_text()), configured(weights)
    assert {key: sidecar[key] for key in settings} == settings
    assert settings or weights.name != "model.pt"


def test_readme_metadata_and_sidecar_agree_on_what_is_experimental(bundle):
    (row,) = [line for line in README.read_text().splitlines() if line.startswith(f"| `{bundle.name}` |")]
    said = {
        "README.md": "experimental" in row.rpartition("|")[0].rpartition("|")[2],
        "metadata.json": read_json(bundle / "configs" / "metadata.json")["experimental"],
    }
    sidecar = bundle / "models" / "model.json"
    if sidecar.exists():
        said["model.json"] = read_json(sidecar)["experimental"]
    else:  # nobody has trained it for long enough
        assert "none" in row.rpartition("|")[0].rpartition("|")[2]
        assert said["metadata.json"]
    assert len(set(said.values())) == 1, said
