"""A real MONAI Label server."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from commands.cases import FRAMES, VOXELMORPH, change, check_labels

from benchmarks import monai_label
from custom_components.commands.exporting import export_bundle
from custom_components.commands.segment import segment
from custom_components.commands.strip import strip
from custom_components.data.phantoms import STRUCTURES
from custom_components.space import load_image, resample
from custom_components.transforms.intensities import scale_intensity

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def label_python(pytestconfig: pytest.Config) -> str:
    """The Python of an environment with MONAI Label: $MORPHZOO_MONAI_LABEL, else one in pytest's cache."""
    given = os.environ.get("MORPHZOO_MONAI_LABEL")
    if shutil.which("curl") is None:
        pytest.skip("the server is asked by curl, which is not installed here")
    try:
        return given or monai_label.make_environment(pytestconfig.cache.mkdir("monai_label"))
    except (RuntimeError, OSError) as error:
        pytest.skip(f"MONAI Label cannot be installed here: {error}")


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(label_python: str, label_bundle: Path, studies: Path, server_folder: Path) -> Iterator[str]:
    """The address of a MONAI Label server with the bundle and one that segments, whose studies are the phantoms."""
    folder = server_folder
    model = shutil.copytree(label_bundle, folder / label_bundle.name)
    change(model / "configs" / "train.json", num_pairs=2, num_val_pairs=2, size=[32, 32, 32])
    shutil.copytree(studies / "studies", folder / "studies")
    (segmenter,) = export_bundle(VOXELMORPH.with_name("brain_extraction"), folder)
    with monai_label.running_server(label_python, folder, [model, segmenter], folder / "studies") as address:
        yield address


def infer(server: str, output: Path, study: str, *words: Any, model: str = "voxelmorph_atlas", **settings: Any) -> int:
    return monai_label.infer(server, output, model, study, *words, **{"affine": "none", "optimize": 0, **settings})


def test_the_server_lists_the_model(server):
    with urllib.request.urlopen(f"{server}/info/") as answer:
        model = json.load(answer)["models"]["voxelmorph_atlas"]
    assert (model["type"], model["dimension"], model["config"]["optimize"]) == ("segmentation", 3, 12)
    assert model["labels"] == {name: id for id, (name, _) in STRUCTURES.items()}


@pytest.mark.parametrize("name", FRAMES)
def test_the_server_answers_with_labels_on_the_studys_grid(server, studies, tmp_path, name):
    assert infer(server, tmp_path / "answer.nii.gz", name, optimize=10) == 200
    check_labels(tmp_path / "answer.nii.gz", studies, name)


def test_fifty_requests_in_turn_and_fifty_at_once_are_answered_equally(server, tmp_path):
    names = list(FRAMES)

    def ask(number: int, kind: str) -> bytes:
        path = tmp_path / f"{kind}_{number}.nii.gz"
        assert infer(server, path, names[number % len(names)], optimize=0) == 200
        return load_image(path).data.numpy().tobytes()

    in_turn = [ask(number, "in_turn") for number in range(50)]
    with ThreadPoolExecutor(10) as pool:
        at_once = list(pool.map(lambda number: ask(number, "at_once"), range(50)))
    assert at_once == in_turn
    assert in_turn == [in_turn[number % len(names)] for number in range(50)]


def test_an_uploaded_label_map_is_propagated(server, studies, tmp_path):
    upload = ["-F", f"label=@{studies / 'truth' / 'LAS.nii.gz'}"]
    moving = str(studies / "studies" / "LAS.nii.gz")
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", *upload, optimize=10, moving=moving) == 200
    check_labels(tmp_path / "answer.nii.gz", studies, "PIR")


def test_another_scan_itself_is_brought_to_the_study(server, studies, tmp_path):
    moving, study = str(studies / "studies" / "LAS.nii.gz"), load_image(studies / "studies" / "PIR.nii.gz")
    settings = {"moving": moving, "answer": "image", "optimize": 10}
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", **settings) == 200
    found, before = load_image(tmp_path / "answer.nii.gz"), load_image(moving)
    assert found.file_shape == study.file_shape
    images = [resample(before.data, before.affine, study.grid), found.data]
    errors = [float((scale_intensity(image) - scale_intensity(study.data)).abs().mean()) for image in images]
    assert errors[1] < 0.7 * errors[0], errors
    assert len(np.unique(found.data)) > 1000
    assert infer(server, tmp_path / "answer.nii.gz", "PIR", moving=moving, answer="nothing") >= 400


def test_wrong_requests_get_an_error_and_the_server_stays(server, studies, tmp_path):
    answer = tmp_path / "answer.nii.gz"
    (tmp_path / "corrupt.nii.gz").write_bytes((studies / "studies" / "LAS.nii.gz").read_bytes()[:2000])
    assert infer(server, answer, "LAS", model="nothing") >= 400
    assert infer(server, answer, "nobody") >= 400
    assert infer(server, answer, "", "-F", f"file=@{tmp_path / 'corrupt.nii.gz'}") >= 400
    assert infer(server, answer, "LAS", moving="/absent.nii.gz", label_moving="/absent.nii.gz") >= 400
    assert infer(server, answer, "LAS", moving=str(studies / "studies" / "PIR.nii.gz")) >= 400
    assert infer(server, answer, "LAS") == 200


def test_requests_of_other_pages_or_with_code_are_refused(server, server_folder, tmp_path):
    """Each would make a file; a page sends multipart without asking first, with its Origin."""
    answer, sung = tmp_path / "answer", tmp_path / "sung"
    code = f"$open({str(sung)!r}, 'w')"
    assert infer(server, answer, "LAS", "-H", "Origin: http://evil.example") == 403
    assert infer(server, answer, "LAS", "-H", "Host: evil.example") == 403
    assert monai_label.curl(answer, "-H", "Sec-Fetch-Site: cross-site", f"{server}/info/") == 403
    for name in ("affine", "optimize", "device", "model_filename", "anything"):
        for value in (code, {"_target_": "builtins.open", "file": str(sung), "mode": "w"}, "%configs/train.json::seed"):
            assert infer(server, answer, "LAS", **{name: value}) == 400, (name, value)
    for settings in ({"max_epochs": code}, {"run_id": "initialize"}, {"tracking_uri": code}, {"val_split": code}):
        url, request = f"{server}/train/voxelmorph_atlas?run_sync=true", json.dumps(settings)
        assert monai_label.curl(answer, "-X", "POST", url, "-H", "Content-Type: application/json", "-d", request) == 400
    for name, value in (("affine", "elsewhere"), ("optimize", 1.5), ("optimize", -1), ("optimise", 3)):
        assert infer(server, answer, "LAS", **{name: value}) >= 400, (name, value)
    assert infer(server, answer, "LAS") == 200
    assert infer(server, answer, "LAS", "-H", f"Origin: {server}") == 200
    assert not sung.exists()


def test_a_bundle_that_segments_answers_as_its_commands_do(server, server_folder, studies, tmp_path):
    with urllib.request.urlopen(f"{server}/info/") as answer:
        listed = json.load(answer)["models"]["brain_extraction"]
    assert (listed["type"], listed["dimension"], len(listed["labels"])) == ("segmentation", 3, 17)
    paths = [str(studies / "studies" / f"{name}.nii.gz") for name in FRAMES]
    segment(*paths, output=str(tmp_path / "labels"), atlases=0)
    strip(*paths, output=str(tmp_path / "mask"), border=4)
    for name in FRAMES:
        for kind, asked in (("labels", {}), ("mask", {"answer": "mask", "border": 4})):
            path = tmp_path / f"{name}_{kind}.nii.gz"
            assert monai_label.infer(server, path, "brain_extraction", name, **asked) == 200
            found, wanted = nib.load(path), nib.load(tmp_path / kind / path.name)
            np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)
            np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(wanted.dataobj))
    assert monai_label.infer(server, tmp_path / "answer", "brain_extraction", "LAS", optimize=3) >= 400
    assert monai_label.infer(server, tmp_path / "answer", "brain_extraction", "LAS", border="wide") >= 400
    url, request = f"{server}/train/brain_extraction?run_sync=true", json.dumps({"max_epochs": 1})
    header = ("-H", "Content-Type: application/json")
    assert monai_label.curl(tmp_path / "answer", "-X", "POST", url, *header, "-d", request) >= 400
    assert not (server_folder / "monaibundle" / "model" / "brain_extraction" / "eval").exists()


def test_the_server_trains(server, server_folder, studies, tmp_path):
    models = server_folder / "monaibundle" / "model" / "voxelmorph_atlas" / "models"
    before = torch.load(models / "model.pt", weights_only=True)
    answer = tmp_path / "answer.json"
    assert (
        monai_label.curl(
            answer, "-X", "PUT", f"{server}/datastore/?image=atlas", "-F", f"file=@{studies / 'atlas.nii.gz'}"
        )
        == 200
    )
    truth = {name: studies / "truth" / f"{name}.nii.gz" for name in FRAMES}
    for name, path in {**truth, "atlas": studies / "atlas_labels.nii.gz"}.items():
        url = f"{server}/datastore/label?image={name}&tag=final"
        assert monai_label.curl(answer, "-X", "PUT", url, "-F", f"label=@{path}", "-F", "params={}") == 200
    request = json.dumps({"max_epochs": 1, "multi_gpu": False, "val_split": 0.5})
    url = f"{server}/train/voxelmorph_atlas?run_sync=true"
    assert monai_label.curl(answer, "-X", "POST", url, "-H", "Content-Type: application/json", "-d", request) == 200
    assert [path.name for path in models.glob("*.pt")] == ["model.pt"]
    after = torch.load(models / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert infer(server, tmp_path / "answer.nii.gz", "LAS") == 200


def test_labels_of_rendered_heads_come_closer(label_python, test_data, tmp_path):
    asked = {"voxelmorph": [{}]}
    before, after = monai_label.measure(test_data / "labelmaps3d_2mm" / "datalist.json", tmp_path, label_python, asked)
    for name, (value, _) in before[2].items():
        assert after[2][name][0] > value + 0.3, name
    text = monai_label.table([before, after])
    assert "| before |" in text
    assert "| `voxelmorph_atlas` |" in text
