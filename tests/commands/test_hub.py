"""The folder for the Hugging Face Hub: MONAI pushes it as it is, and gives it back; its card says what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from monai import bundle as monai_bundle
from monai.bundle import scripts
from support import run

from custom_components.commands.bundles import all_bundles
from custom_components.commands.exporting import bundle_files
from custom_components.commands.hub_card import hub_files

SHIPPED = [folder for folder in all_bundles() if (folder / "models" / "model.pt").is_file()]
each_bundle = pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)


def header_of(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.slow
@each_bundle
def test_the_card_has_licence_tags_version_and_the_figures_of_the_weights(bundle):
    files = bundle_files(bundle)
    found = hub_files(files)
    assert set(found) == set(files) - {"docs/README.md"} | {"README.md"}
    card = found["README.md"].decode()
    assert card.endswith(files["docs/README.md"].decode()[-300:])  # without pictures
    header, metadata = header_of(card), json.loads(files["configs/metadata.json"])
    assert header["license"] == "apache-2.0"
    assert header["version"] == metadata["version"]
    assert {"monai", "medical"} < set(header["tags"])
    assert ("experimental" in header["tags"]) == metadata["experimental"]
    told = {
        (metric["name"], result["dataset"]["type"]): metric["value"]
        for model in header.get("model-index", [])
        for result in model["results"]
        for metric in result["metrics"]
    }
    for path in sorted((bundle / "models").glob("*.json")):
        if path.with_suffix(".pt").is_file() and f"models/{path.name}" in files:
            for data, figures in json.loads(path.read_text()).get("figures", {}).items():
                for name, value in figures.items():
                    assert told[f"{name} ({path.stem}.pt)", data] == value


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder, in place of `huggingface_hub` in MONAI."""
    tags: list[str] = []

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, **options: object) -> None: ...

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            return f"hub/{repo_id}"

        def create_tag(self, repo_id: str, tag: str, exist_ok: bool) -> None:
            tags.append(tag)

    def snapshot_download(repo_id: str, revision: str, local_dir: str) -> None:
        assert revision in tags
        shutil.copytree(tmp_path / "hub" / repo_id, local_dir, dirs_exist_ok=True)

    monkeypatch.setattr(scripts, "huggingface_hub", SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download))
    return tags


@pytest.mark.slow
def test_monai_pushes_the_folder_as_it_is_and_gives_it_back(tmp_path, hub):
    assert run("export", "voxelmorph", "-o", tmp_path / "out", "--for", "hub") is None
    folder = tmp_path / "out" / "voxelmorph"
    card = (folder / "README.md").read_text()
    monai_bundle.push_to_hf_hub(
        repo="user/voxelmorph", name="voxelmorph", bundle_dir=str(tmp_path / "out"), version="0.1.0"
    )
    assert hub == ["0.1.0"]
    monai_bundle.download(
        name="voxelmorph", source="huggingface_hub", repo="user/voxelmorph", version="0.1.0", bundle_dir=str(tmp_path)
    )
    there = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    back = tmp_path / "voxelmorph"
    assert {path.relative_to(back): path.read_bytes() for path in back.rglob("*") if path.is_file()} == there
    assert (back / "README.md").read_text() == card
    assert card.count("\n---\n") == 1


def test_pictures_of_the_page_are_found_from_the_card():
    files = {"docs/README.md": b"![a](curve.png) [b](../x.md)", "docs/curve.png": b"", "configs/metadata.json": b""}
    files["configs/metadata.json"] = json.dumps({"version": "1", "name": "n", "task": "t"}).encode()
    assert hub_files(files)["README.md"].decode().endswith("![a](docs/curve.png) [b](../x.md)")


def test_the_hub_takes_no_archive(tmp_path):
    assert "leave --zip out" in run("export", "voxelmorph", "-o", tmp_path, "--for", "hub", "--zip")
    assert list(Path(tmp_path).iterdir()) == []
