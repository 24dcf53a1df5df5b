"""Every bundle, the same checks: metadata, configs, network, training, resuming, inference, evaluation, variants.

A folder in bundles/ with configs/metadata.json is found by itself. Bundles run in-process: to import MONAI takes long.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from custom_components.data.phantoms import write_phantom_scans

REPOSITORY = Path(__file__).resolve().parents[1]
OVERLAYS = REPOSITORY / "bundles" / "overlays"
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
SCHEMA = REPOSITORY / "tests" / "data" / "meta_schema_20240725.json"
SCHEMA_SHA256 = "341be94f63b0341bb8267d56a862879f13546fd542ea501054763d0dc27c55be"
PAIR_FILES = {
    "warped.nii.gz",
    "warped_label.nii.gz",
    "forward_field.nii.gz",
    "inverse_field.nii.gz",
    "transform.h5",
    "inverse_transform.h5",
    "jacobian.nii.gz",
    "metrics.json",
    "picture.png",
}
ATLAS_FILES = {"warped_fixed.nii.gz", "warped_fixed_label.nii.gz"}
UNCERTAINTY_FILES = {"displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"}
METRIC_FILES = {"sigma.nii.gz", "sigma.png"}
SAMPLE_FILES = {f"sample_{i:02d}_{kind}.nii.gz" for i in (1, 2, 3) for kind in ("warped", "field")}
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\n0,5,2\n1,110,8\n2,170,8\n3,60,8\n4,140,8\n"
TINY = {"size": [32, 32, 32], "spacing": 1.0, "center": "image", "learning_rate": 0.0005, "precision": "float32"}
# A network of patches: few examples, optimised briefly; dropout, that it can be sampled.
TINY |= {"num_momenta": 1, "iterations": [2, 2, 2], "visit_iterations": 2, "dropout": 0.05}
# One objective, so that the losses of different steps can be compared.
TINY |= {"hyper_prior": [1000.0, 1000.0], "hyper_endpoint_share": 0.0}
# What a template is made for: training and inference must agree on it.
TEMPLATE = {"conditions": {"age": "numeric"}, "template_labels": [0, 1, 2, 3, 4], "label_stride": 2}
TINY |= TEMPLATE
TEMPLATE |= {"size": TINY["size"]}

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms of 32 x 32 x 32 voxels of 1 mm, two of them for validation, and their labels' statistics."""
    folder = Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 5, (32, 32, 32))).parent
    (folder / "labels.csv").write_text(STATISTICS)
    return with_ages(folder)


def with_ages(folder: Path) -> Path:
    """Add an attribute to the scans of a folder's data list: 20, 30, ..."""
    sections = read_json(folder / "datalist.json")
    for i, scan in enumerate(sections["training"] + sections["validation"]):
        scan["age"] = 20 + 10 * i
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


@pytest.fixture(scope="module")
def trained(bundle: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with two epochs of training, and the loss of each step; not to be changed."""
    folder = tmp_path_factory.mktemp(bundle.name)
    return SimpleNamespace(folder=folder, losses=train(bundle, scans, folder))


@pytest.fixture(scope="module")
def registered(bundle: Path, scans: Path, trained: SimpleNamespace) -> Path:
    """The results of inference on the two validation pairs; not to be changed."""
    return infer(bundle, scans, trained.folder / "registered", weights=str(trained.folder / "model.pt"))


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
    """Train as the smoke overlay says; the loss of each step."""
    configs = [bundle / "configs" / name for name in ("train.json", *variants)] + [OVERLAYS / "smoke.json"]
    settings = {"dataset_dir": str(scans), "output_dir": str(folder), "ckpt_dir": str(folder), "num_pairs": 8}
    job = workflow(bundle, "train", configs, {**settings, **TINY, **overrides})
    job.initialize()
    trainer, losses = job.parser.get_parsed_content("train#trainer"), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    job.run()
    job.finalize()
    return losses


def infer(bundle: Path, scans: Path, output: Path, *overlays: str, **overrides: Any) -> Path:
    configs = [bundle / "configs" / "inference.json", *(OVERLAYS / name for name in overlays)]
    settings = {"dataset_dir": str(scans), "output_dir": str(output), "section": "validation_pairs", "spacing": 1.0}
    settings |= {"affine": "none", "optimize": 0}
    if "iterations" in read_json(configs[0]):  # it always optimises
        settings["iterations"] = [2, 2, 2]
    if has_template(bundle):
        settings |= {"section": "validation", **TEMPLATE}
    job = workflow(bundle, "infer", configs, {**settings, **overrides})
    job.initialize()
    job.run()
    job.finalize()
    return output


def read_curve(folder: Path) -> list[dict[str, str]]:
    with open(folder / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_image(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def configs_of(bundle: Path) -> list[Path]:
    return [path for path in sorted((bundle / "configs").glob("*.json")) if path.name != "metadata.json"]


def targets_in(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
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


def messages(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def test_there_is_a_bundle():
    assert BUNDLES


# What is written


def test_metadata_follow_the_schema(bundle):
    jsonschema = pytest.importorskip("jsonschema")
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() == SCHEMA_SHA256
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert metadata["schema"].endswith(SCHEMA.name)
    jsonschema.validate(metadata, read_json(SCHEMA))


def test_version_is_in_the_changelog(bundle):
    metadata = read_json(bundle / "configs" / "metadata.json")
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize(("kind", "config"), [("train", "train.json"), ("infer", "inference.json")])
def test_workflow_has_every_property_monai_asks_for(bundle, scans, trained, tmp_path, kind, config):
    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), **TINY}
    section = "validation" if has_template(bundle) else "validation_pairs"
    settings |= {"section": section, "weights": str(trained.folder / "model.pt")}
    job = workflow(bundle, kind, [bundle / "configs" / config], settings)
    job.initialize()
    assert job.check_properties() == []


@pytest.mark.parametrize("name", ["network_def", "deformation"])
def test_training_and_inference_agree_on_the(bundle, name):
    train_config, inference = (read_json(bundle / "configs" / f"{job}.json") for job in ("train", "inference"))
    assert train_config[name] == inference[name]


def test_configs_are_short(bundle):
    lengths = {path.name: len(path.read_text().splitlines()) for path in configs_of(bundle)}
    assert max(lengths.values()) <= 110, lengths


def test_every_target_in_the_configs_imports(bundle):
    names = {
        name for path in configs_of(bundle) + sorted(OVERLAYS.glob("*.json")) for name in targets_in(read_json(path))
    }
    assert names
    assert [name for name in sorted(names) if not imports(name)] == []


def test_every_id_an_overlay_overrides_exists(bundle):
    for overlay, base in (("smoke", "train"), ("evaluate", "inference")):
        parser = ConfigParser(read_json(bundle / "configs" / f"{base}.json"))
        for name in read_json(OVERLAYS / f"{overlay}.json"):
            parent = name.rpartition("#")[0]
            assert not parent or parent in parser, f"{overlay}.json overrides {name}, and {base}.json has no {parent}"


def test_handlers_that_write_logs_stand_last(bundle):
    """The multi-GPU overlay gives the last three to the first process alone, the others to every process."""
    names = [
        h["_target_"].rpartition(".")[2] for h in read_json(bundle / "configs" / "train.json")["train"]["handlers"]
    ]
    writers = {"TrainingCurve", "TensorBoardStatsHandler", "ProgressBar", "StatsHandler"}
    assert "@train#handlers[:-3]" in read_json(OVERLAYS / "multi_gpu.json")["train#trainer#train_handlers"]
    assert not writers & set(names[:-3])
    assert writers >= set(names[-3:])


# The network


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
    )


def test_scripted_network_gives_equal_output(bundle):
    parser = ConfigParser(read_json(bundle / "configs" / "inference.json"))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    metadata = read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    image = torch.rand(
        1, metadata["num_channels"], *[n if isinstance(n, int) else 32 for n in metadata["spatial_shape"]]
    )
    with torch.no_grad():
        assert torch.equal(torch.jit.script(network)(image), network(image))


# Training


def test_training_lowers_the_loss(bundle, scans, trained, tmp_path):
    """Of images that are the same in each epoch."""
    assert len(trained.losses) == steps_of(bundle)
    config, same = read_json(bundle / "configs" / "train.json")["train"], {}
    if config["dataset"]["_target_"].endswith("ScanPairDataset"):
        same["train#dataset#shuffle"] = False
    if "SynthesizedBatch" in str(config.get("prepare_batch")):
        same["train#prepare_batch#seed"] = 0
    losses = np.reshape(train(bundle, scans, tmp_path, max_epochs=4, **same), (4, -1))
    assert losses[2:].mean() < losses[:2].mean()


def test_training_writes_checkpoints_curve_and_events(bundle, trained):
    assert {"model.pt", "last.pt", "curve.csv"} <= {path.name for path in trained.folder.iterdir()}
    assert list(trained.folder.glob("events.out.tfevents.*"))
    assert not [path for path in trained.folder.iterdir() if path.name.startswith(".")]
    curve = read_curve(trained.folder)
    assert [row["epoch"] for row in curve] == ["1", "2"]
    half = steps_of(bundle) // 2
    assert float(curve[1]["loss"]) == pytest.approx(np.mean(trained.losses[half:]), abs=1e-5)
    assert all(float(row["score"]) > 0 for row in curve)


def test_model_file_is_a_plain_state_dict_of_the_network(bundle, trained):
    network_of(bundle).load_state_dict(torch.load(trained.folder / "model.pt", weights_only=True), strict=True)


def test_model_file_holds_the_averaged_weights(bundle, trained):
    if not read_json(bundle / "configs" / "train.json").get("ema_decay"):
        pytest.skip("the bundle does not average its weights")
    average = torch.load(trained.folder / "model.pt", weights_only=True)
    latest = torch.load(trained.folder / "last.pt", weights_only=True)["network"]
    assert average.keys() == latest.keys()
    assert not all(torch.equal(average[name], latest[name]) for name in latest)


def test_training_with_another_seed_gives_other_numbers(bundle, scans, trained, tmp_path):
    assert train(bundle, scans, tmp_path, seed=1, max_epochs=1) != trained.losses[: steps_of(bundle) // 2]


def test_resumed_training_goes_on_as_if_it_had_not_been_interrupted(bundle, scans, trained, tmp_path):
    first = train(bundle, scans, tmp_path, max_epochs=1)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    second = train(bundle, scans, tmp_path, resume=True)
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert after["iteration"] == len(first) + len(second) == steps_of(bundle)
    assert [row["epoch"] for row in read_curve(tmp_path)] == ["1", "2"]
    np.testing.assert_allclose([*first, *second], trained.losses, rtol=1e-4)
    for name, weights in torch.load(trained.folder / "last.pt", weights_only=True)["network"].items():
        torch.testing.assert_close(after["network"][name], weights, rtol=1e-3, atol=1e-5)
    best, uninterrupted = (read_curve(folder)[-1]["score"] for folder in (tmp_path, trained.folder))
    assert float(best) == pytest.approx(float(uninterrupted), abs=1e-3)


def test_checkpoint_of_another_architecture_is_not_resumed(bundle, scans, trained, tmp_path):
    checkpoint = torch.load(trained.folder / "last.pt", weights_only=True)
    name, weight = next(iter(checkpoint["network"].items()))
    checkpoint["network"][name] = weight[:1]
    torch.save(checkpoint, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        train(bundle, scans, tmp_path, resume=True)
    assert "is a checkpoint of another network" in messages(caught.value)
    assert (tmp_path / "last.pt").read_bytes() == before


# Inference


def test_inference_writes_exactly_the_expected_files(bundle, registered):
    pytest.importorskip("itk")
    folders = [path for path in registered.iterdir() if path.is_dir()]
    assert {path.name for path in folders} == set(pairs_of(bundle))
    expected = PAIR_FILES | (ATLAS_FILES if has_template(bundle) else set())
    expected |= METRIC_FILES if "weight_sigma" in read_json(bundle / "configs" / "inference.json") else set()
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == expected
    files = {path.name for path in registered.iterdir() if path.is_file()}
    assert {"metrics.csv", "metrics.json", "index.html"} <= files
    templates = {f"template_age-{age}{end}" for age in (50, 60) for end in (".nii.gz", "_label.nii.gz", ".json")}
    assert files - {"metrics.csv", "metrics.json", "index.html"} == (templates if has_template(bundle) else set())


def test_it_registers_without_a_network(bundle, scans, tmp_path):
    if has_template(bundle):
        pytest.skip("the template is a part of the network")
    infer(bundle, scans, tmp_path, "training_free.json", iterations=[2, 1, 1])
    metrics = read_json(next(tmp_path.glob("*/metrics.json")))
    assert metrics["ncc_after"] > metrics["ncc_before"]


def test_results_lie_on_the_grid_of_the_fixed_image(bundle, registered, scans):
    fixed = nib.load(scans / "images" / "phantom_04.nii.gz")
    if has_template(bundle):
        fixed = nib.load(registered / "template_age-50.nii.gz")
        for name in ("warped_fixed.nii.gz", "warped_fixed_label.nii.gz"):
            result = nib.load(registered / "phantom_03" / name)
            assert result.shape == nib.load(scans / "images" / "phantom_03.nii.gz").shape
    for name in ("warped.nii.gz", "warped_label.nii.gz"):
        result = nib.load(registered / pairs_of(bundle)[0] / name)
        assert result.shape == fixed.shape
        np.testing.assert_allclose(result.affine, fixed.affine, atol=1e-5)


def test_inference_twice_gives_equal_numbers(bundle, scans, trained, registered):
    again = infer(bundle, scans, trained.folder / "again", weights=str(trained.folder / "model.pt"))
    for folder in (path for path in registered.iterdir() if path.is_dir()):
        for image in sorted(folder.glob("*.nii.gz")):
            np.testing.assert_array_equal(read_image(again / folder.name / image.name), read_image(image))
        first, second = (read_json(root / folder.name / "metrics.json") for root in (registered, again))
        for metrics in (first, second):
            metrics.pop("seconds")
            metrics["fixed"] = Path(metrics["fixed"]).name  # a template lies in the folder of the run
        assert first == second


def test_weights_of_another_architecture_are_refused(bundle, scans, trained, tmp_path):
    weights = torch.load(trained.folder / "model.pt", weights_only=True)
    weights["surplus.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "model.pt")
    network = read_json(bundle / "configs" / "inference.json")["network_def"]["_target_"].rpartition(".")[2]
    with pytest.raises(RuntimeError) as caught:
        infer(bundle, scans, tmp_path / "out", weights=str(tmp_path / "model.pt"))
    assert network in messages(caught.value)
    assert "surplus.weight" in messages(caught.value)
    assert not (tmp_path / "out").exists()


def test_evaluation_writes_a_table_and_a_page(bundle, scans, trained, tmp_path):
    pytest.importorskip("scipy")
    infer(bundle, scans, tmp_path, "evaluate.json", weights=str(trained.folder / "model.pt"))
    assert {"metrics.csv", "metrics.json", "index.html"} <= {path.name for path in tmp_path.iterdir()}
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(float(row["dice_after"]) > 0 and float(row["hd95_after_mm"]) >= 0 for row in rows)
    assert read_json(tmp_path / "metrics.json")["num_pairs"] == 2
    assert not list(tmp_path.glob("*/warped.nii.gz"))


def test_optimization_of_the_pair_raises_the_similarity(bundle, scans, trained, registered, tmp_path):
    if "optimize" not in read_json(bundle / "configs" / "inference.json"):
        pytest.skip("the bundle has no pairwise optimisation")
    infer(bundle, scans, tmp_path, weights=str(trained.folder / "model.pt"), optimize=5)
    name = f"{pairs_of(bundle)[0]}/metrics.json"
    assert read_json(tmp_path / name)["ncc_after"] > read_json(registered / name)["ncc_after"]


def test_regions_of_a_label_map_can_have_a_metric_of_their_own(bundle, scans, tmp_path):
    overlay = bundle / "configs" / "inference_predefined.json"
    if not overlay.exists():
        pytest.skip("the bundle has no pre-defined regulariser")
    short = {"iterations": [1, 1, 3], "regions": {"1": [1, 0, 0, 0], "2": [0, 1, 0, 0]}, "region_sigma": 1.0}
    infer(bundle, scans, tmp_path, str(overlay), **short)
    metrics = read_json(tmp_path / pairs_of(bundle)[0] / "metrics.json")
    assert metrics["ncc_after"] > metrics["ncc_before"]
    sigma = read_image(tmp_path / pairs_of(bundle)[0] / "sigma.nii.gz")
    assert sigma.min() < 6
    assert sigma.max() == pytest.approx(16, abs=0.5)  # elsewhere the widest alone


@pytest.fixture(scope="module")
def sampled(bundle: Path, scans: Path, trained: SimpleNamespace) -> Path:
    """The results of inference with three samples; not to be changed."""
    if "samples" not in read_json(bundle / "configs" / "inference.json"):
        pytest.skip("the bundle has no uncertainty")
    return infer(bundle, scans, trained.folder / "sampled", weights=str(trained.folder / "model.pt"), samples=3)


def test_inference_with_samples_writes_exactly_the_expected_files(sampled):
    pytest.importorskip("itk")
    for folder in (path for path in sampled.iterdir() if path.is_dir()):
        assert {path.name for path in folder.iterdir()} == PAIR_FILES | UNCERTAINTY_FILES | SAMPLE_FILES
        metrics = read_json(folder / "metrics.json")
        assert metrics["samples"] == 3
        assert metrics["displacement_sd_mm"] > 0
        assert metrics["velocity_sd_mm"] > 0
        assert 0 <= metrics["label_entropy"] <= np.log(3)
        assert 0 <= metrics["sample_folding_percent"] <= 100


def test_samples_leave_the_results_of_the_mean_as_they_are(bundle, registered, sampled):
    needs(bundle, "prior_precision")  # with dropout, the mean is that of the samples
    for folder in (path for path in registered.iterdir() if path.is_dir()):
        for image in sorted(folder.glob("*.nii.gz")):
            np.testing.assert_array_equal(read_image(sampled / folder.name / image.name), read_image(image))
        mean, both = (read_json(root / folder.name / "metrics.json") for root in (registered, sampled))
        assert mean.pop("seconds") > 0
        assert mean.items() <= both.items()


def test_samples_follow_the_seed(bundle, scans, trained, sampled, tmp_path):
    folder, weights = "phantom_03-to-phantom_04", str(trained.folder / "model.pt")
    again, other = (
        infer(bundle, scans, tmp_path / str(seed), weights=weights, samples=3, seed=seed) / folder for seed in (0, 1)
    )
    for name in sorted(UNCERTAINTY_FILES | SAMPLE_FILES):
        if name.endswith(".nii.gz"):
            np.testing.assert_array_equal(read_image(again / name), read_image(sampled / folder / name))
    for name in ["displacement_sd.nii.gz", *sorted(SAMPLE_FILES)]:
        assert not np.array_equal(read_image(other / name), read_image(sampled / folder / name))
    sd = [read_image(root / "velocity_sd.nii.gz") for root in (other, again)]
    of_the_samples = "prior_precision" not in read_json(bundle / "configs" / "inference.json")
    assert np.array_equal(*sd) != of_the_samples


# Variants of the training


def needs(bundle: Path, name: str) -> None:
    if name not in read_json(bundle / "configs" / "train.json"):
        pytest.skip(f"train.json has no {name}")


def test_labels_add_a_segmentation_term(bundle, scans, tmp_path):
    needs(bundle, "labels")
    train(bundle, scans, tmp_path, labels=[1, 2, 3], max_epochs=1, num_pairs=2)
    assert float(read_curve(tmp_path)[0]["segmentation"]) > 0


def test_one_scan_can_be_the_fixed_image_of_all(bundle, scans, tmp_path):
    needs(bundle, "atlas")
    losses = train(
        bundle,
        scans,
        tmp_path,
        atlas=str(scans / "images" / "phantom_04.nii.gz"),
        max_epochs=1,
        num_pairs=4,
        num_patches=4,
    )
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_two_dimensional_variant_trains(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_2d.json").exists():
        pytest.skip("the bundle has no 2-D variant")
    if "slices" in read_json(bundle / "configs" / "train_2d.json"):  # cut from volumes
        levels = {1: [10, 20], 2: [10, 20]}
        losses = train(bundle, scans, tmp_path, "train_2d.json", **{"slices#levels": levels})
        assert np.isfinite(losses).all()
        assert float(read_curve(tmp_path)[1]["score"]) > 0
        return
    slabs = with_ages(Path(write_phantom_scans(tmp_path / "slabs", 4, (32, 32))).parent)
    losses = train(bundle, slabs, tmp_path, "train_2d.json", size=[32, 32], learning_rate=0.002)
    half = len(losses) // 2
    assert half == (4 if steps_of(bundle) == 8 else 1)  # two scans make two ordered pairs
    assert np.mean(losses[half:]) < np.mean(losses[:half])


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


def test_label_maps_alone_train(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_labelmaps.json").exists():
        pytest.skip("the bundle has no variant for label maps")
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, "train_labelmaps.json", max_epochs=1)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


@pytest.mark.parametrize(
    ("names", "settings", "terms"),
    [
        (["train_affine"], {}, {"points", "anchors"}),
        (["train_affine", "train_affine_2d"], {"slices#levels": {1: [10, 20], 2: [10, 20]}, "num_slices": 4}, set()),
        (
            ["train_labelmaps", "train_joint"],
            {"affine_weights": "none", "momentum_weights": "none", "num_steps": 1},
            {"similarity", "affine", "symmetry"},
        ),
    ],
    ids=["affine", "affine 2-D", "joint"],
)
def test_stages_of_a_training_train(bundle, scans, tmp_path, names, settings, terms):
    if not (bundle / "configs" / f"{names[-1]}.json").exists():
        pytest.skip(f"the bundle has no {names[-1]}.json")
    overlays = [f"{name}.json" for name in names]
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, *overlays, max_epochs=1, **settings)
    assert np.isfinite(losses).all()
    row = read_curve(tmp_path)[0]
    assert float(row["score"]) > 0
    assert all(float(row[term]) > 0 for term in terms), row
    assert (tmp_path / "affine.pt").exists() == (names[-1] == "train_joint")


def test_the_published_affine_stage_follows_its_schedules(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_affine_published.json").exists():
        pytest.skip("the bundle has no train_affine_published.json")
    settings = {"max_epochs": 3, "num_pairs": 2, "symmetric_from": 1, "steps_from": 2, "late_steps": 2}
    losses = train(bundle, scans, tmp_path, "train_affine_published.json", **settings)
    assert np.isfinite(losses).all()
    symmetry = [float(row.get("symmetry") or 0) for row in read_curve(tmp_path)]
    assert symmetry[0] == 0
    assert min(symmetry[1:]) > 0


def test_random_shapes_train_without_data(bundle, tmp_path):
    if not (bundle / "configs" / "train_shapes.json").exists():
        pytest.skip("the bundle has no variant for random shapes")
    losses = train(bundle, tmp_path / "nowhere", tmp_path, "train_shapes.json", num_maps=3, max_epochs=1)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


def test_surfaces_add_a_term(bundle, scans, tmp_path):
    needs(bundle, "surfaces")
    pytest.importorskip("scipy")
    losses = train(bundle, scans, tmp_path, surfaces=[1, 2], max_epochs=1, num_pairs=2)
    surface = float(read_curve(tmp_path)[0]["surface"])
    assert np.isfinite([*losses, surface]).all()
    assert surface > 0


def test_labels_can_have_a_gaussian_likelihood(bundle, scans, tmp_path):
    needs(bundle, "segmentation_sigma")
    settings = {"labels": [1, 2, 3], "max_epochs": 1, "num_pairs": 2}
    segmentation = []
    for sigma in (0.5, 1.0):
        losses = train(bundle, scans, tmp_path / str(sigma), segmentation_sigma=sigma, **settings)
        assert np.isfinite(losses).all()
        segmentation.append(float(read_curve(tmp_path / str(sigma))[0]["segmentation"]))
    assert segmentation[0] == pytest.approx(4 * segmentation[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("bidirectional", False), ("smoothing", 0), ("exact", True), ("trace", "degree")]
)
def test_other_settings_train(bundle, scans, tmp_path, trained, name, value):
    needs(bundle, name)
    losses = train(bundle, scans, tmp_path, max_epochs=1, **{name: value})
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert losses != trained.losses[:4]


@pytest.mark.slow
def test_two_processes_train_and_resume(bundle, scans, tmp_path):
    configs = [bundle / "configs" / "train.json", OVERLAYS / "smoke.json", OVERLAYS / "multi_gpu.json"]
    settings = {"dataset_dir": scans, "output_dir": tmp_path, "ckpt_dir": tmp_path, "bundle_root": bundle}
    settings |= {**TINY, "batch_size": 1, "num_pairs": 4, "num_patches": 4}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str([str(path) for path in configs])]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    for epochs, resume in ((1, False), (2, True)):
        result = subprocess.run(
            [*command, "--max_epochs", str(epochs), "--resume", str(resume)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
        # 4 pairs in 2 processes: 2 steps in an epoch.
        assert (checkpoint["epoch"], checkpoint["iteration"]) == (epochs, 2 * epochs)
    assert (tmp_path / "model.pt").exists()
    assert [row["epoch"] for row in read_curve(tmp_path)] == ["1", "2"]
    network_of(bundle, "train").load_state_dict(checkpoint["network"], strict=True)


# On a GPU, which is compared with the CPU. The node may lack itk, matplotlib and TensorBoard.


def without_tensorboard(bundle: Path) -> dict[str, bool]:
    if importlib.util.find_spec("tensorboard") is not None:
        return {}
    config = read_json(bundle / "configs" / "train.json")
    writers = ("TensorBoardStatsHandler", "custom_components.training.logs.WarpedPanel")
    return {
        f"{part}#handlers#{i}#_disabled_": True
        for part in ("train", "validate")
        for i, handler in enumerate(config[part]["handlers"])
        if handler["_target_"] in writers
    }


def check_training_on(device: str, bundle: Path, scans: Path, folder: Path) -> None:
    losses = {}
    for name in ("cpu", device):
        settings = {"device": torch.device(name), **without_tensorboard(bundle)}
        losses[name] = train(bundle, scans, folder / name, **settings)
    assert (folder / device / "model.pt").exists()
    np.testing.assert_allclose(losses[device], losses["cpu"], rtol=0.02)
    assert losses[device][0] == pytest.approx(losses["cpu"][0], rel=1e-3)


def check_inference_on(device: str, bundle: Path, scans: Path, output: Path, weights: Path) -> None:
    results = [
        infer(
            bundle,
            scans,
            output / name,
            weights=str(weights),
            device=torch.device(name),
            **{"postprocessing#transforms#1#picture": False},
        )
        for name in ("cpu", device)
    ]
    names = {path.relative_to(results[0]) for path in results[0].glob("*/*")}
    folder = pairs_of(bundle)[0]
    assert {Path(folder) / name for name in ("warped.nii.gz", "metrics.json")} <= names
    assert names == {path.relative_to(results[1]) for path in results[1].glob("*/*")}
    for name in ("warped.nii.gz", "forward_field.nii.gz", "inverse_field.nii.gz"):
        first, second = (read_image(root / folder / name) for root in results)
        np.testing.assert_allclose(second, first, atol=0.02)


@pytest.fixture
def strict_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 in convolutions: the CPU has none."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class TestOnGpu:
    pytestmark = gpu

    def test_training_follows_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        check_training_on("cuda", bundle, scans, tmp_path)

    def test_inference_agrees_with_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        train(bundle, scans, tmp_path, **without_tensorboard(bundle))
        check_inference_on("cuda", bundle, scans, tmp_path, tmp_path / "model.pt")
