"""What the tests of the bundles share."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from custom_components.commands.bundles import registers

REPOSITORY = Path(__file__).resolve().parents[1]
OVERLAYS = REPOSITORY / "bundles" / "overlays"
RENDERED = str(OVERLAYS / "rendered.json")
EVERY_BUNDLE = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/inference.json"))
BUNDLES = [bundle for bundle in EVERY_BUNDLE if registers(bundle)]  # those that register
SHIPPED = [bundle for bundle in BUNDLES if (bundle / "models" / "model.pt").is_file()]  # with weights
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\n0,5,2\n1,110,8\n2,170,8\n3,60,8\n4,140,8\n"
TINY = {"size": [32, 32, 32], "spacing": 1.0, "center": "image", "learning_rate": 0.0005, "precision": "float32"}
# A network of patches: few examples, optimised briefly; dropout, that it can be sampled.
TINY |= {"num_momenta": 1, "iterations": [2, 2, 2], "visit_iterations": 2, "dropout": 0.05}
# One objective, so that the losses of different steps can be compared.
TINY |= {"hyper_prior": [1000.0, 1000.0], "hyper_endpoint_share": 0.0, "structures": [[2, 3, 4]], "mixed_pairs": 0.0}
# One pair, where the claim is of one.
FIRST = {"dataset#data": "$load_list(@data_list, @section, @dataset_dir)[:1]"}
TINY |= {"pixels": 32, "num_frames": 4}  # of series
TINY |= {"window": [0.0, 1.0, 1.0]}  # whole heads: a part may show no structure
# What a template is made for: training and inference must agree on it.
TEMPLATE = {"conditions": {"age": "numeric"}, "template_labels": [0, 1, 2, 3, 4], "label_stride": 2}
TINY |= TEMPLATE
TEMPLATE |= {"size": TINY["size"]}


def with_ages(folder: Path) -> Path:
    """Add an attribute to the scans of a folder's data list: 20, 30, ..."""
    sections = read_json(folder / "datalist.json")
    for i, scan in enumerate(sections["training"] + sections["validation"]):
        scan["age"] = 20 + 10 * i
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


def label_maps(scans: Path, folder: Path) -> Path:
    """The phantoms' label maps without their images, as a data set of its own."""
    sections = read_json(scans / "datalist.json")
    maps = {
        name: [{**scan, "label": str(scans / scan["label"])} for scan in sections[name] if scan.pop("image")]
        for name in ("training", "validation")
    }
    (folder / "datalist.json").write_text(json.dumps(maps))
    (folder / "labels.csv").write_text(STATISTICS)
    return folder


def has_template(bundle: Path) -> bool:
    """Whether it registers single scans, each to the bundle's own template."""
    return "conditions" in read_json(bundle / "configs" / "inference.json")


def pairs_of(bundle: Path) -> list[str]:
    """Folders of the results of inference on the phantoms."""
    return (
        ["phantom_03", "phantom_04"] if has_template(bundle) else [f"phantom_0{i}-to-phantom_0{7 - i}" for i in (3, 4)]
    )


def steps_of(bundle: Path) -> int:
    """Steps of `train`: two epochs of four batches of two; where each pair has its place, six are all there are."""
    return 6 if "store" in read_json(bundle / "configs" / "train.json") else 8


def network_of(bundle: Path, job: str = "inference") -> torch.nn.Module:
    config = read_json(bundle / "configs" / f"{job}.json")
    parser = ConfigParser(config)
    parser["spacing"] = TINY["spacing"]  # of the trainings here
    parser.update({name: value for name, value in TEMPLATE.items() if name in config and has_template(bundle)})
    return parser.get_parsed_content("network_def")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def workflow(bundle: Path, kind: str, configs: list[Path], overrides: dict[str, Any]) -> ConfigWorkflow:
    """Overrides that name an id the bundle has not got are left out: MONAI would take them without a word."""
    known = {name for path in configs for name in read_json(path)}
    return ConfigWorkflow(
        workflow_type=kind,
        config_file=[str(path) for path in configs],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(bundle),
        **{name: value for name, value in overrides.items() if name.split("#")[0] in known},
    )


def train(bundle: Path, scans: Path, folder: Path, *variants: str, **overrides: Any) -> list[float]:
    """Train as the smoke overlay says, with every property MONAI asks for; the loss of each step."""
    configs = [bundle / "configs" / name for name in ("train.json", *variants)] + [OVERLAYS / "smoke.json"]
    settings = {"dataset_dir": str(scans), "output_dir": str(folder), "ckpt_dir": str(folder), "num_pairs": 8}
    job = workflow(bundle, "train", configs, {**settings, **TINY, **overrides})
    job.initialize()
    assert job.check_properties() == []
    trainer, losses = job.parser.get_parsed_content("train#trainer"), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    job.run()
    job.finalize()
    if torch.cuda.is_available():  # the next test asks for nothing
        torch.use_deterministic_algorithms(False)
    return losses


def infer(bundle: Path, scans: Path, output: Path, *overlays: str, **overrides: Any) -> Path:
    """Infer on the phantoms, without overlays with every property MONAI asks for; the folder of the results."""
    configs = [bundle / "configs" / "inference.json", *(OVERLAYS / name for name in overlays)]
    settings = {"dataset_dir": str(scans), "output_dir": str(output), "section": "validation_pairs", "spacing": 1.0}
    settings |= {"affine": "none", "optimize": 0}
    if "iterations" in read_json(configs[0]):  # it always optimises
        settings["iterations"] = [2, 2, 2]
    if has_template(bundle):
        settings |= {"section": "validation", **TEMPLATE}
    job = workflow(bundle, "infer", configs, {**settings, **overrides})
    job.initialize()
    assert overlays or job.check_properties() == []
    job.run()
    job.finalize()
    return output


def read_curve(folder: Path) -> list[dict[str, str]]:
    with open(folder / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_image(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def messages(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def needs(bundle: Path, name: str) -> None:
    if name not in read_json(bundle / "configs" / "train.json"):
        pytest.skip(f"train.json has no {name}")
