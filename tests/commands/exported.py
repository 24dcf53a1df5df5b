"""What an exported bundle must do where the package is not installed; test_export.py runs it in a process of its own.

    python exported.py

reads lines [FOLDER, SCANS, SCHEMA, OUTPUT]. For each it forks a process, since importing MONAI takes long. That process
works in the bundle's FOLDER and writes answers.json into OUTPUT: the answer to each question, or {"error": the messages
of the error and of its causes}. Then a line {"status": how the process ended} is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import sys
import unittest
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

sys.modules["custom_components"] = None  # type: ignore[assignment]  # its import fails
warnings.simplefilter("ignore")

import torch  # noqa: E402
from monai import bundle  # noqa: E402
from monai.bundle.scripts import _add_model_card_metadata  # noqa: E402

NETWORK = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}


class Bundle:
    """The bundle in the current folder, with scans to work on and a folder for its results."""

    def __init__(self, scans: Path, schema: Path, output: Path) -> None:
        self.scans, self.schema, self.output = scans, schema, output
        self.inference = json.loads(Path("configs/inference.json").read_text())
        pair = json.loads((scans / "datalist.json").read_text())["validation_pairs"][0]
        self.item = {key: value if key == "id" else str(scans / value) for key, value in pair.items()}
        if "conditions" in self.inference:
            self.item = {"image": self.item["fixed"], "ventricles": 4}
        metadata = json.loads(Path("configs/metadata.json").read_text())
        takes = metadata.get("abilities", {}).get("input", "pair")
        self.registers = takes in ("pair", "scan")
        if takes in ("image", "series"):
            self.item = {"image": self.item["fixed"]}
        if takes == "answer":
            self.item = {"fixed": self.item["fixed"], "warped": self.item["moving"]}
        self.settings = {"dataset_dir": str(scans), "output_dir": str(output), "affine": "none", "optimize": 0}
        image = metadata["network_data_format"]["inputs"]["image"]
        size = [n if isinstance(n, int) else 32 for n in image["spatial_shape"]]
        self.image = torch.rand(1, image["num_channels"], *size, generator=torch.Generator().manual_seed(0))

    def run(self, kind: str, configs: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """As `monai.bundle run`; the properties that MONAI misses."""
        job = bundle.ConfigWorkflow(
            config_file=[f"configs/{name}.json" for name in configs],
            workflow_type=kind,
            logging_file="configs/logging.conf",
            **{**self.settings, **settings},
        )
        job.initialize()
        missing = job.check_properties()
        job.run()
        job.finalize()
        return missing

    def train(self) -> list[str]:
        """By the unit test that travels with the bundle."""
        return self.unit_test("test_train_config")

    def infer_in_unit_test(self) -> list[str]:
        """Of one bundle that takes pairs, and of those that take scans or images; others have none."""
        if "warped" in self.item:
            return []
        takes_pair = self.registers and "conditions" not in self.inference
        return self.unit_test("test_infer_config") if not takes_pair or Path.cwd().name == "voxelmorph" else []

    def unit_test(self, name: str) -> list[str]:
        """The faults that a test of tests/test_<bundle>.py finds."""
        (path,) = Path("tests").glob("test_*.py")
        os.environ["BUNDLE_ROOT"] = "."
        cases = runpy.run_path(str(path))
        (case,) = [one for one in cases.values() if isinstance(one, type) and issubclass(one, unittest.TestCase)]
        found = unittest.TestResult()
        case(name).run(found)
        return [text for _, text in (*found.failures, *found.errors)]

    def infer(self, *overlays: str, item: dict[str, Any] | None = None, **settings: Any) -> list[str]:
        few = {"save#write": ["warped"], "report#picture": False} if self.registers else {}
        return self.run("infer", ["inference", *overlays], {**few, "dataset#data": [item or self.item], **settings})

    def lacks(self) -> list[str]:
        """What configs name that is not in the folder: other configs, files, code. Weights of variants may lack."""
        configs = {path.name: json.loads(path.read_text()) for path in Path("configs").glob("*.json")}
        found = []
        for name, config in configs.items():
            described = json.dumps(config.get("_desc_", "")).replace('", "', " ")
            named = re.findall(r"\b(?:for|after) (?:a )?(\w+\.json)", described)
            found += [f"{name}: {other}" for other in named if other not in configs]
            for key, value in strings(config):
                if key == "_target_" and "." in value and not value.startswith("$") and locate(value) is None:
                    found.append(f"{name}: {value}")
                files = re.findall(r"bundle_root \+ '/([^']+)'", value)
                weights = re.compile(r"models/\w+\.pt|eval|runs")
                found += [f"{name}: {file}" for file in files if not Path(file).exists() and not weights.match(file)]
        return found

    def infer_with_learned_affine(self) -> list[str]:
        overlay = "learned_affine"
        if not Path(f"configs/{overlay}.json").exists():
            return []
        few = {"iterations": [2, 2, 2]} if "iterations" in self.inference else {}
        return self.infer(overlay, affine="learned", output_dir=str(self.output / "aligned"), **few)

    def infer_with_volumes(self) -> list[str]:
        """A page whose viewer was not exported; bundles that register have one."""
        place = {"output_dir": str(self.output / "volumes")}
        return self.infer(**{"postprocessing#page": "volumes"}, **place) if self.registers else []

    def metadata(self) -> None:
        bundle.verify_metadata(meta_file=NETWORK["meta_file"], filepath=str(self.schema))

    def in_and_out(self) -> None:
        bundle.verify_net_in_out(net_id="network_def", device="cpu", **NETWORK)

    def load(self) -> list[str]:
        """Names of weights that did not arrive in the network."""
        self.network = bundle.load(Path.cwd().name, bundle_dir="..", workflow_type="inference", device="cpu").eval()
        state, weights = self.network.state_dict(), torch.load("models/model.pt", weights_only=True)
        with torch.no_grad():
            self.wanted = self.network(self.image)
        return [name for name in state.keys() | weights.keys() if not torch.equal(state[name], weights[name])]

    def torchscript(self) -> float:
        path = str(self.output / "model.ts")
        bundle.ckpt_export("network_def", filepath=path, ckpt_file="models/model.pt", **NETWORK)
        with torch.no_grad():
            return float((torch.jit.load(path)(self.image) - self.wanted).abs().max())

    def onnx(self) -> float | str:
        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError as error:
            return str(error)
        path = str(self.output / "model.onnx")
        shape = list(self.image.shape)
        bundle.onnx_export("network_def", path, ckpt_file="models/model.pt", input_shape=shape, **NETWORK)
        session = onnxruntime.InferenceSession(path)
        (answer,) = session.run(None, {session.get_inputs()[0].name: self.image.numpy()})
        return float((torch.from_numpy(answer) - self.wanted).abs().max())

    def hub_card(self) -> str:
        """The page that `push_to_hf_hub` makes."""
        for path in ("docs/README.md", "LICENSE"):
            shutil.copy(path, self.output)
        _add_model_card_metadata(str(self.output / "README.md"))
        return (self.output / "README.md").read_text()

    def infer_absent_scan(self) -> list[str]:
        scan = next(key for key in ("image", "moving", "warped") if key in self.item)
        return self.infer(item={**self.item, scan: "absent.nii.gz"})

    def infer_without_weights(self) -> list[str]:
        return self.infer(weights="absent.pt")

    def infer_flat_scan(self) -> list[str]:
        scan = next(key for key in ("image", "moving", "warped") if key in self.item)
        return self.infer(item={**self.item, scan: str(self.scans / "flat.nii.gz")})

    def infer_flat_scans(self) -> list[str]:
        flat = dict.fromkeys(self.item.keys() & {"image", "moving", "fixed", "warped"}, str(self.scans / "flat.nii.gz"))
        return self.infer(item={**self.item, **flat})

    def questions(self) -> list[Callable[[], Any]]:
        good = [self.train, self.infer_in_unit_test, self.infer, self.infer_with_learned_affine]
        good += [self.infer_with_volumes, self.metadata]
        good += [self.in_and_out, self.load, self.torchscript, self.onnx, self.hub_card, self.lacks]
        return [*good, self.infer_absent_scan, self.infer_without_weights, self.infer_flat_scan, self.infer_flat_scans]


def strings(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config, each with the nearest key above."""
    if isinstance(config, str):
        yield key, config
    for name, value in config.items() if isinstance(config, dict) else []:
        yield from strings(value, name)
    for value in config if isinstance(config, list) else []:
        yield from strings(value, key)


def messages(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return texts


def answer(folder: str, *words: str) -> None:
    """In the bundle's folder, as `python -m` has it."""
    os.chdir(folder)
    sys.path[0] = folder
    scans, schema, output = map(Path, words)
    answers = {}
    for question in Bundle(scans, schema, output).questions():
        try:
            answers[question.__name__] = question()
        except Exception as error:
            answers[question.__name__] = {"error": messages(error)}
    (output / "answers.json").write_text(json.dumps(answers))


def main() -> None:
    with contextlib.suppress(ImportError):
        import onnxscript  # noqa: F401
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            answer(*json.loads(line))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    main()
