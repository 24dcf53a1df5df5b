"""Exported bundles: complete without the package, the same bytes each time, segmentation models in MONAI Label.

A folder in bundles/ with configs/metadata.json is found by itself. Each is asked all questions of exported.py in one
process, in which the package cannot be imported: to import MONAI takes long."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands.cases import ENVIRONMENT, REPOSITORY, SCHEMA, VOXELMORPH, monai_bundle
from monai.bundle import ConfigWorkflow

from custom_components.commands.bundles import abilities, all_bundles, registers
from custom_components.commands.exporting import export_bundle
from custom_components.data.phantoms import write_phantom_scans

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\n0,5,2\n1,110,8\n2,170,8\n3,60,8\n4,140,8\n"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms of 32 x 32 x 32 voxels of 1 mm with an attribute, a flat one, and a table of the structures."""
    folder = Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 5, (32, 32, 32))).parent
    sections = json.loads((folder / "datalist.json").read_text())
    for i, scan in enumerate(sections["training"] + sections["validation"]):
        scan["ventricles"] = 2 + i
    (folder / "datalist.json").write_text(json.dumps(sections))
    nib.save(nib.load(folder / "images" / "phantom_00.nii.gz").slicer[:, :, 16:17], folder / "flat.nii.gz")
    (folder / "labels.csv").write_text(STATISTICS)
    return folder


SHIPPED = [folder for folder in all_bundles() if (folder / "models" / "model.pt").is_file()]  # export asks for weights


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folder, the zip and its checksum; not to be changed."""
    folder, archive, checksum = export_bundle(bundle, tmp_path_factory.mktemp(bundle.name), zipped=True)
    return SimpleNamespace(folder=folder, archive=archive, checksum=checksum)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Have the questions of exported.py answered in a process in which the package cannot be imported."""
    log = tmp_path_factory.mktemp("asked") / "log.txt"
    command = [sys.executable, str(Path(__file__).with_name("exported.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with log.open("w") as errors, subprocess.Popen(command, env=ENVIRONMENT, stderr=errors, **pipes) as process:

        def answer(*words: Path) -> None:
            process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline() or "null") == {"status": 0}, log.read_text()[-4000:]

        yield answer


@pytest.fixture(scope="module")
def answers(
    exported: SimpleNamespace, scans: Path, ask: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the unpacked zip answers to the questions of exported.py."""
    place, output = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("output")
    with zipfile.ZipFile(exported.archive) as archive:
        archive.extractall(place)
    ask(place / exported.folder.name, scans, SCHEMA, output)
    return {**json.loads((output / "answers.json").read_text()), "output": output}


def test_the_files_are_those_of_the_zoo(exported):
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()}
    wanted = {f"configs/{name}" for name in ("metadata.json", "train.json", "inference.json", "logging.conf")}
    wanted |= {f"configs/{name}.json" for name in ("smoke", "evaluate", "multi_gpu_train")}
    wanted |= {"models/model.pt", "docs/README.md", "docs/data_license.txt", "LICENSE", "scripts/__init__.py"}
    assert wanted <= files
    assert not [name for name in files if "cache" in name or name.startswith("eval") or name.endswith(".pyc")]
    assert max(path.stat().st_size for path in exported.folder.rglob("*")) < 25e6  # more goes into large_files.yml


def test_nothing_names_the_package_or_this_machine(exported):
    for path in exported.folder.rglob("*"):
        if path.suffix in (".json", ".py", ".conf"):
            text = path.read_text(encoding="utf-8")
            assert "custom_components" not in text, path
            assert str(REPOSITORY) not in text, path
            assert "/../" not in text, path


def test_weights_that_configs_name_are_there(exported):
    for name in ("inference.json", "learned_affine.json", "learned_affine_2d.json"):
        path = exported.folder / "configs" / name
        if path.exists():
            for weights in re.findall(r"'/(models/[\w.]+)'", path.read_text()):
                assert (exported.folder / weights).is_file(), f"{name} needs {weights}"


def test_the_page_has_the_sections_of_the_zoos_template(exported):
    text = (exported.folder / "docs" / "README.md").read_text(encoding="utf-8")
    wanted = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "Additional Usage Steps"]
    wanted += ["System Configuration", "Limitations", "Citation", "References", "License"]
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [section for section in wanted if section in headings]
    assert set(wanted) - set(headings) < {"Citation", "References"}


def test_configs_name_nothing_that_is_not_in_the_folder(answers):
    assert answers["lacks"] == []


def test_exporting_twice_gives_equal_bytes(bundle, exported, tmp_path):
    _, archive, checksum = export_bundle(bundle, tmp_path, zipped=True)
    assert archive.read_bytes() == exported.archive.read_bytes()
    assert checksum.read_text() == exported.checksum.read_text()


def test_the_zip_is_named_by_the_version_and_holds_the_folder(exported):
    version = json.loads((exported.folder / "configs" / "metadata.json").read_text())["version"]
    assert exported.archive.name == f"{exported.folder.name}_v{version}.zip"
    with zipfile.ZipFile(exported.archive) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (exported.folder.parent / name).read_bytes()


@pytest.mark.parametrize("question", ["train", "infer_in_unit_test", "infer", "infer_with_learned_affine"])
def test_it_runs_and_has_every_property_monai_asks_for(answers, question):
    assert answers[question] == []


def test_it_gives_what_the_package_gives(bundle, answers, scans, tmp_path):
    takes = abilities(bundle).get("input", "pair")
    results = {"image": "*_labels.nii.gz", "answer": "*_error_mm.nii.gz", "series": "*/subtraction.nii.gz"}
    result = results.get(takes, "*/warped.nii.gz")
    (wanted,) = answers["output"].glob(result)
    item = json.loads((scans / "datalist.json").read_text())["validation_pairs"][0]
    item |= {key: str(scans / value) for key, value in item.items() if key != "id"}
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    if "conditions" in config:
        item = {"image": item["fixed"], "ventricles": 4}
    few = {"save#write": ["warped"], "report#picture": False} if registers(bundle) else {}
    if takes == "answer":
        item = {"fixed": item["fixed"], "warped": item["moving"]}
    elif takes in ("image", "series"):
        item = {"image": item["fixed"]}
    job = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        affine="none",
        optimize=0,
        output_dir=str(tmp_path),
        **{"dataset#data": [item], **few},
    )
    job.initialize()
    job.run()
    (same,) = tmp_path.glob(result)
    np.testing.assert_allclose(nib.load(wanted).get_fdata(), nib.load(same).get_fdata(), atol=1e-4)


def test_its_pages_are_made_and_the_viewer_that_it_lacks_is_named_before_anything_is_written(bundle, answers):
    if not registers(bundle):
        assert answers["infer_with_volumes"] == []
        return
    (page,) = answers["output"].glob("*/report.html")
    assert "Measures</h2>" in page.read_text(encoding="utf-8")
    said = [one for one in answers["infer_with_volumes"]["error"] if "the viewer NiiVue is not here" in one]
    assert said
    assert "\n" not in said[-1]
    assert not (answers["output"] / "volumes").exists()


@pytest.mark.parametrize("question", ["metadata", "in_and_out"])
def test_monai_finds_no_fault_in_its(answers, question):
    assert answers[question] is None


def test_it_loads_with_all_its_weights(answers):
    assert answers["load"] == []


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_other_forms_of_the_network_give_equal_output(answers, form):
    if isinstance(answers[form], str):
        pytest.skip(answers[form])
    assert answers[form] < 1e-4, answers[form]


def test_the_page_for_the_hub_names_the_licence(answers):
    assert "license: apache-2.0" in answers["hub_card"].split("---")[1]


@pytest.mark.parametrize(
    ("question", "part"), [("infer_absent_scan", "absent.nii.gz: no such"), ("infer_without_weights", "absent.pt")]
)
def test_the_exported_bundle_names_the_file_that_is_missing(answers, question, part):
    last = answers[question]["error"][-1]
    assert part in last
    assert "\n" not in last


def test_a_flat_scan_with_another_is_refused(answers):
    wanted = "expected (two images of one dimension|a 3-D image|a series of at least 2)"
    assert re.search(wanted, answers["infer_flat_scan"]["error"][-1])


def test_flat_scans_are_refused(answers):
    assert re.search("expected (3-D images|two images|a 3-D image|a series)", answers["infer_flat_scans"]["error"][-1])


def test_monai_downloads_and_runs_the_zip(scans, tmp_path):
    _, archive, _ = export_bundle(VOXELMORPH, tmp_path / "exported", zipped=True)
    words = ["--name", "voxelmorph", "--url", archive.as_uri(), "--bundle_dir", tmp_path]
    done = monai_bundle(tmp_path, "download", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    pair = {role: str(scans / "images" / f"phantom_0{i}.nii.gz") for role, i in (("moving", 3), ("fixed", 4))}
    words = ["--config_file", "configs/inference.json", "--dataset#data", f"[{pair}]", "--output_dir", tmp_path / "out"]
    done = monai_bundle(tmp_path / "voxelmorph", "run", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    written = {path.name for path in (tmp_path / "out").glob("*/*")}
    assert {"warped.nii.gz", "forward_field.nii.gz", "metrics.json"} <= written
