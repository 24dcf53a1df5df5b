"""Data never become code: a canary for each door through which data come, for all bundles.

Each hostile value would make a file if MONAI's parser read it: as an expression, an import, a component or a macro.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import BUNDLES, SHIPPED, STATISTICS, has_template, workflow
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from support import run

from custom_components.commands.bundles import find_bundle, overlay_path
from custom_components.commands.exporting import export_bundle
from custom_components.commands.label_server_export import export_for_monai_label
from custom_components.commands.settings import give
from custom_components.commands.workflow import build_workflow
from custom_components.files import read_state
from custom_components.methods.conditional_atlas.template import ConditionalTemplate
from custom_components.transforms.asked import Asked, Offered

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A folder to work in, which stays without the file `sung`; hostile values beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hatch.py").write_text("open('sung', 'w').close()\n")
    (tmp_path / "other.json").write_text(json.dumps({"key": "$open('sung', 'w')", "secret": "read"}))
    yield tmp_path
    assert not (tmp_path / "sung").exists(), "a value was run as code"
    assert "hatch" not in sys.modules, "a value was imported"


TEXTS = [
    "$open('sung', 'w')",
    "$import hatch",
    "$from hatch import x",
    "%other.json::key",
    "%other.json",
    "@bundle_root",
    "@nothing",
    "a#b",
    "$(",
]
OBJECTS: list[Any] = [
    {"_target_": "builtins.open", "file": "sung", "mode": "w"},
    [{"inner": {"_target_": "builtins.open", "file": "sung", "mode": "w"}}],
    {"_target_": "hatch.x", "_disabled_": False},
    {"$import hatch": "@bundle_root"},
]
HOSTILE = TEXTS + OBJECTS
# What reaches a parser or a path; the others are no numbers.
DOORS = ["affine", "weights", "section", "precision", "spacing", "optimize", "labels", "device"]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    x = np.linspace(-1, 1, 20)
    image = np.exp(-4 * (x[:, None, None] ** 2 + x[:, None] ** 2 + (x - 0.2) ** 2)).astype("f4")
    nib.save(nib.Nifti1Image(image, np.diag([8.0, 8, 8, 1])), path)
    return path


def item_of(bundle: Path, scan: Path) -> dict[str, Any]:
    return {"image": str(scan), "ventricles": 1} if has_template(bundle) else {"moving": str(scan), "fixed": str(scan)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["_target_", "a", "$x"]), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_a_parser_hands_given_values_on_unread(value):
    """Through a reference, an argument of a component and after the parser was reset."""
    parser = ConfigParser({"a": 1, "b": {"_target_": "builtins.dict", "x": "@a", "y": 2}, "c": ["@a"]})
    give(parser, {"a": value, "b#y": value})
    for _ in range(2):
        assert parser.get_parsed_content("a") is value
        assert parser.get_parsed_content("b") == {"x": value, "y": value}
        assert parser.get_parsed_content("c") == [value]
        parser.parse(True)


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda bundle: bundle.name)
def test_items_of_a_data_list_are_data_for_every_bundle(bundle, scan, canary):
    """In the command: all that an item can hold besides its files."""
    items = [item_of(bundle, scan) | {"id": f"{i}", "note": value, "affine": "none"} for i, value in enumerate(HOSTILE)]
    parser = build_workflow(bundle.name, items, (), {"output_dir": "out"}).parser
    assert parser.get_parsed_content("dataset").data == items
    parser.get_parsed_content("evaluator")
    assert parser.get_parsed_content("dataset").data == items


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_data_list_is_data_for_monai_bundle_run(bundle, scan, canary):
    """As the README and the exported form run inference.json."""
    items = [item_of(bundle, scan) | {"id": f"{i}", "note": value} for i, value in enumerate(HOSTILE)]
    (canary / "list.json").write_text(json.dumps({"test": items}))
    job = workflow(bundle, "infer", [bundle / "configs" / "inference.json"], {"data_list": "list.json"})
    job.initialize()
    assert job.parser.get_parsed_content("dataset").data == items


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_a_data_list_is_data_for_training(bundle, scan, canary):
    """The list that train.json reads; nobody looks further than the paths and the attributes."""
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.diag([8.0, 8, 8, 1])), "labels.nii.gz")
    files = {"image": str(scan), "label": str(canary / "labels.nii.gz")}
    scans = [{**files, "ventricles": i, "subject": f"{i}"} for i in range(2)]
    scans = [{**scans[i % 2], "note": value} for i, value in enumerate(HOSTILE)]
    (canary / "list.json").write_text(json.dumps({"training": scans, "validation": scans}))
    (canary / "labels.csv").write_text(STATISTICS)
    overrides = {"dataset_dir": str(canary), "data_list": "list.json", "ckpt_dir": "runs", "output_dir": "runs"}
    job = workflow(bundle, "train", [bundle / "configs" / "train.json"], overrides)
    job.initialize()
    assert job.parser.get_parsed_content("pairs").training(4).data == scans


def test_a_data_list_is_data_for_an_exported_bundle(scan, canary, tmp_path_factory, monkeypatch):
    folder = export_bundle(find_bundle("voxelmorph"), tmp_path_factory.mktemp("exported"))[0]
    monkeypatch.syspath_prepend(str(folder))
    items = [{"moving": str(scan), "fixed": str(scan), "id": f"{i}", "note": value} for i, value in enumerate(HOSTILE)]
    (canary / "list.json").write_text(json.dumps({"test": items}))
    job = workflow(folder, "infer", [folder / "configs" / "inference.json"], {"data_list": "list.json"})
    job.initialize()
    assert job.parser.get_parsed_content("dataset").data == items
    forget_scripts()


def forget_scripts() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def test_files_of_a_relative_list_can_have_any_name(scan, canary):
    """A relative list names them as they are, and so does the cohort's table."""
    names = ["$open('sung', 'w').nii.gz", "@bundle_root.nii.gz", "%other.nii.gz", "a#b,c.nii.gz"]
    for name in names:
        (canary / name).write_bytes(scan.read_bytes())
    pairs = [{"moving": name, "fixed": names[0], "id": f"{i}"} for i, name in enumerate(names)]
    (canary / "list.json").write_text(json.dumps({"validation_pairs": pairs}))
    words = ["--affine", "none", "--iterations", "1,1,1", "--overlay", overlay_path("training_free")]
    assert run("evaluate", "list.json", "-o", "$(out)", "-b", "voxelmorph", *words) is None
    assert len((canary / "$(out)" / "metrics.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("bundle", ["voxelmorph", "conditional_atlas"])
def test_settings_of_the_command_are_data(bundle, name, scan, canary):
    """Each is refused in one line, or taken as the text that it is (the name of a section can be anything)."""
    for value in HOSTILE:
        message = ""
        try:
            parser = build_workflow(bundle, [item_of(find_bundle(bundle), scan)], (), {name: value}).parser
            assert parser.get_parsed_content(name) == value
        except (ValueError, OSError) as error:
            message = str(error)
        assert "\n" not in message


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("words", ["strip --weights", "segment --device", "prepare --pattern", "prepare --template"])
def test_words_of_commands_that_register_nothing_are_data(words, text, scan, canary):
    command, option = words.split()
    (canary / "people").mkdir()
    source = scan if command != "prepare" else "people"  # an empty folder: the configuration is read all the same
    message = run(command, source, f"{option}={text}", f"--output={text}")
    assert message.startswith("morphzoo: error: ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "words",
    [
        *("propagate --to", "propagate --fusion", "propagate --label_names", "template --initial"),
        *("template --contrasts", "longitudinal --affine", "longitudinal --page", "longitudinal --label_names"),
    ],
)
def test_words_of_commands_for_groups_are_data(words, text, scan, canary):
    command, option = words.split()
    given = {"propagate": [f"{scan},{scan}", f"--to={scan}"], "template": ["people"], "longitudinal": [scan, scan]}
    (canary / "people").mkdir()
    for name in "ab":
        shutil.copy(scan, canary / "people" / f"{name}{''.join(Path(scan).suffixes)}")
    message = run(command, *given[command], f"{option}={text}", f"--output={text}", "--spacing=20")
    assert message.startswith("morphzoo: error: ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("option", ["--initial", "--image", "--dataset_dir", "--spacing", "--labels", "--fixed_scan"])
def test_words_of_a_training_are_data(option, text, scan, canary):
    (canary / "people").mkdir()
    for name in "abcd":
        shutil.copy(scan, canary / "people" / f"{name}{''.join(Path(scan).suffixes)}")
    words = [
        "people",
        "--initial=none",
        f"{option}={text}",
        f"--output={text}",
        "--size=[32,32,32]",
        "--val_interval=9",
    ]
    words += ["--max_epochs=1"]  # which validates never: nothing is trained
    message = run("train", *(word for word in words if option != "--initial" or word != "--initial=none"))
    assert message.startswith("morphzoo: error: ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["guide_moving", "guide_fixed", "guide_weight", "page", "label_names"])
def test_words_on_guides_and_pages_are_data(name, text, scan, canary):
    message = run("register", scan, scan, f"--{name}={text}", "--affine=none", "--spacing=20", "--optimize=0")
    assert message.startswith("morphzoo: error: ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["output", "weights", "affine", "device", "bundle", "spacing"])
def test_words_of_the_command_line_are_data(name, text, scan, canary):
    message = run("register", scan, scan, f"--{name}={text}", "--affine=nowhere.tfm", "--spacing=20")
    assert message.startswith("morphzoo: error: ")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["network_def", "network_def#_target_", "initialize", "evaluator", "load_weights"])
def test_parts_of_a_configuration_are_no_settings(name, scan, canary):
    with pytest.raises(ValueError, match=r"has no setting|is no setting"):
        build_workflow("voxelmorph", [{"moving": str(scan), "fixed": str(scan)}], (), {name: "$open('sung', 'w')"})


@pytest.mark.parametrize("text", TEXTS)
def test_attributes_of_an_atlas_are_data(text, canary):
    message = run("atlas", "-o", "out", f"--attributes=ventricles={text}")
    assert message.startswith("morphzoo: error: ")
    assert run("atlas", "-o", "out", f"--sweep=ventricles={text}:1:3").startswith("morphzoo: error: ")


def test_the_description_in_a_checkpoint_is_data(scan, canary):
    """The names of attributes and categories come as JSON in a tensor, whatever `weights_only` says."""
    good = read_state(str(find_bundle("conditional_atlas") / "models" / "model.pt"))
    descriptions = [{"attributes": {"ventricles": ["numeric", text]}, "labels": [0, 1]} for text in TEXTS]
    descriptions += [{"attributes": {text: "numeric"}, "labels": None} for text in TEXTS]
    descriptions += [{"attributes": {"ventricles": value}, "labels": None} for value in HOSTILE]
    descriptions += [{"attributes": {"ventricles": "numeric"}, "labels": value} for value in HOSTILE]
    descriptions += [{"attributes": {}, "labels": None, "_target_": "builtins.open"}, [], "$open('sung', 'w')"]
    for description in descriptions:
        state = torch.tensor(list(json.dumps(description).encode()), dtype=torch.uint8)
        torch.save({**good, "template._extra_state": state}, "atlas.pt")
        with pytest.raises(ValueError, match="weights of"):
            build_workflow("conditional_atlas", [{"image": str(scan)}], (), {"weights": "atlas.pt"})


def test_a_template_still_describes_itself(canary):
    template = ConditionalTemplate([8, 8], {"age": "numeric", "sex": ["F", "$M"]}, labels=[0, 3])
    template.set_extra_state(template.get_extra_state())


class Pickled:
    """What an unpickler would run."""

    def __reduce__(self):
        return open, ("sung", "w")


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_weights_are_never_unpickled(bundle, scan, canary):
    for name, content in (("weights.pt", {"a": Pickled()}), ("weights.pt", Pickled())):
        torch.save(content, name)
        with pytest.raises(ValueError, match=r"weights\.pt: "):
            build_workflow(bundle.name, [item_of(bundle, scan)], (), {"weights": name})


def test_no_file_of_weights_momenta_or_training_is_unpickled(canary):
    """All are read by one function, whatever wrote them."""
    state = {"optimizer": {"state": {0: {"exp_avg": Pickled()}}}}
    torch.save(state, "zip.pt")
    torch.save(state, "legacy.pt", _use_new_zipfile_serialization=False)
    Path("raw.pt").write_bytes(pickle.dumps(Pickled()))
    Path("old.pt").write_bytes(pickle.dumps(Pickled(), protocol=0))
    np.save("array.pt.npy", np.array([Pickled()], dtype=object), allow_pickle=True)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.pt")
    for path in sorted(canary.glob("*.pt*")):
        with pytest.raises(ValueError, match=f"{path.name}: "):
            read_state(path)


def test_the_code_reads_no_pickle_and_evaluates_nothing():
    """Whatever the door: one function reads tensors, and one fills a parser."""
    for path in (REPOSITORY / "custom_components").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"(?<!`)torch\.load\([^)]*\)", text):
            assert path.name == "files.py", f"{path}: read_state is for that"
            assert "weights_only=True" in call, f"{path}: {call}"
        assert not re.search(r"(?<![\w.])(eval|exec)\(|import pickle|allow_pickle=True|yaml\.load|os\.system", text), (
            path
        )
        if path.name not in ("settings.py", "label_server_export.py", "exporting.py"):
            assert not re.search(r"parser\[[^]]+\] = |parser\.(update|set)\(", text), path


def test_names_of_labels_in_exported_metadata_are_data(scan, canary):
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.diag([8.0, 8, 8, 1])), "labels.nii.gz")
    for text in TEXTS[:7]:
        Path("names.csv").write_text(f'id,name\n1,"{text}"\n')
        words = ["--for", "monai-label", "--atlas", scan, "--atlas-labels", "labels.nii.gz"]
        message = run("export", "voxelmorph", "-o", "out", *words, "--label-names", "names.csv")
        assert "the name of a label cannot begin with $, @ or %" in message
    assert not Path("out").exists()


# MONAI Label


@pytest.fixture(scope="module", params=["voxelmorph", "hypermorph"])
def label_bundle(request, scan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("label")
    labels = folder / "labels.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.uint8), np.diag([8.0, 8, 8, 1])), labels)
    return export_for_monai_label(find_bundle(request.param), folder, atlas=str(scan), atlas_labels=str(labels))[0]


def asked_of(folder: Path, request: dict[str, Any]) -> ConfigParser:
    """What MONAI Label's BundleInferTask does with a request, up to the end of the first transform."""
    parser = ConfigParser(json.loads((folder / "configs" / "inference.json").read_text()))
    parser.config["bundle_root"] = str(folder)
    shown = parser.get_parsed_content("displayable_configs", instantiate=True)
    panel: dict[str, Any] = {}
    panel.update(shown)
    assert "affine" in panel
    data = {**panel, **request}
    parser["displayable_configs"].update({name: data[name] for name in shown.keys()})  # noqa: SIM118
    parser.parse()
    for transform in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        transform(data)
    return parser


@pytest.fixture
def scripts(label_bundle, monkeypatch):
    """The exported code, importable as a server imports it."""
    monkeypatch.syspath_prepend(str(label_bundle))
    yield label_bundle
    forget_scripts()


def test_requests_to_a_label_server_are_data(scripts, scan, canary):
    request = {"model": "m", "image": str(scan), "description": "", "image_path": str(scan), "device": "cpu"}
    offered = ConfigParser(json.loads((scripts / "configs" / "inference.json").read_text()))["displayable_configs"]
    for name in [*(name for name in offered if name != "_target_"), "moving", "answer", "nothing"]:
        for value in [*HOSTILE, -1, 10**9, 1.5, True, "12"]:
            with pytest.raises((ValueError, OSError)) as error:
                asked_of(scripts, {**request, name: value})
            assert "\n" not in str(error.value)


def test_what_a_client_asks_for_reaches_the_inference(scripts, scan, canary):
    parser = asked_of(scripts, {"model": "m", "image": str(scan), "affine": "none", "optimize": 7.0})
    assert parser.get_parsed_content("optimize") == 7
    assert parser.get_parsed_content("asked").value("affine") == "none"


def test_what_is_offered_is_shown_but_not_asked():
    """MONAI Label copies it with `update`, and asks through `keys`; both are this dictionary's."""
    offered, shown = Offered(affine="itk", optimize=3), {}
    shown.update(offered)
    assert shown == {"affine": "itk", "optimize": 3} == dict(offered) == {**offered}
    assert not list(offered.keys())
    assert Asked(offered, ["itk"]).value("optimize") == 3


@pytest.fixture(scope="module")
def guard():
    spec = importlib.util.spec_from_file_location("monai_label_server", REPOSITORY / "docs" / "monai_label_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"host": "127.0.0.1:8000"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://viewer.example"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9"}, False),
        ({"host": "127.0.0.1:8000", "origin": "null"}, False),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, False),
        ({"host": "evil.example:8000"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "user@evil.example"}, False),
        ({"host": ""}, False),
        ({}, False),
    ],
)
def test_the_guard_answers_its_own_machine_and_pages_alone(guard, headers, answered):
    found = guard.refusal_of_sender(headers, guard.HERE, {"http://viewer.example"})
    assert (found is None) == answered


def test_the_guard_refuses_code_in_any_request(guard):
    for value in [*TEXTS[:7], *OBJECTS]:
        assert guard.refusal_of_data({"a": [{"b": value}]}) is not None
    assert (
        guard.refusal_of_data({"affine": "itk", "optimize": 20, "gpus": "all", "label_info": [{"name": "x"}]}) is None
    )


@pytest.mark.parametrize("name", ["max_epochs", "val_split", "pretrained", "multi_gpu", "run_id", "model_filename"])
def test_the_guard_starts_no_training_with_settings_of_another_kind(guard, name):
    assert guard.refusal_of_training({"max_epochs": 1, "multi_gpu": False, "val_split": 0.5}) is None
    for value in [*HOSTILE, -2, 1e9, "../x.pt"]:
        assert guard.refusal_of_training({name: value}) is not None


def asked(guard, path: str, body: bytes, **headers: str) -> int:
    """The status of the answer to a POST; behind the guard is a server that answers 200 if it gets the whole body."""
    sent: list[dict[str, Any]] = []
    parts = [body[i : i + 7] for i in range(0, len(body), 7)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]

    async def server(scope, receive, send):
        got = b""
        while True:
            message = await receive()
            got += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200 if got == body else 500, "headers": []})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    names = {"host": "127.0.0.1", "content-type": "application/json", **headers}
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    scope["headers"] = [(key.replace("_", "-").encode(), value.encode()) for key, value in names.items()]
    asyncio.run(guard.Guard(server, guard.HERE, set())(scope, receive, send))
    return sent[0]["status"]


def test_the_guard_stands_before_the_server(guard):
    good = json.dumps({"max_epochs": 2, "val_split": 0.2}).encode()
    assert asked(guard, "/train/model", good) == 200
    assert asked(guard, "/train/model", b"") == 200
    assert asked(guard, "/train/model", good, origin="http://evil.example") == 403
    assert asked(guard, "/train/model", good, host="evil.example") == 403
    assert asked(guard, "/train/model", b"{") == 400
    assert asked(guard, "/train/model", b'"$open()"', content_type="text/plain") == 400
    assert asked(guard, "/train/model", json.dumps({"max_epochs": "$open('sung', 'w')"}).encode()) == 400
    assert asked(guard, "/batch_infer/infer/m", json.dumps({"device": "%other.json"}).encode()) == 400
    assert asked(guard, "/datastore/image", os.urandom(100), content_type="application/octet-stream") == 200
