"""The experiments of probabilistic VoxelMorph: measures, tables, trainings of some people."""

import ast
import json
from pathlib import Path

import pytest
import torch

from benchmarks import voxelmorph_probabilistic as reproduce
from custom_components.data.phantoms import write_phantom_scans
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

pytestmark = pytest.mark.slow

WIDE = {"encoder_channels": [32, 64, 64, 64], "decoder_channels": [64, 64, 64, 64, 64, 32, 32]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of two variants of untrained weights, measured on two pairs of phantoms."""
    folder = tmp_path_factory.mktemp("reproduce")
    slices = Path(write_phantom_scans(folder / "slices", 4, (32, 32))).parent
    threads = torch.get_num_threads()
    for name in ("base", "diagonal"):
        torch.manual_seed(0)
        (folder / name).mkdir()
        torch.save(
            VoxelMorphUNet(2, half_resolution=True, log_variance=-1.0, **WIDE).state_dict(), folder / name / "model.pt"
        )
        reproduce.measure_variant(name, folder / name, slices, samples=4, num_pairs=3)
    torch.set_num_threads(threads)
    return folder


def test_every_measure_of_a_variant_is_a_number(measured):
    result = json.loads((measured / "base" / "result.json").read_text())
    rows = reproduce.read_rows(measured / "base" / "rows.csv")
    assert result["pairs"] == len(rows) == 2
    assert {"forward", "inverse", "sample_folded", "refined", "refined_own", "white_folded", "sd"} <= result.keys()
    assert result["refined"] > result["unrefined"]  # from a field of nearly zero
    for kind in ("uncertainty", "uncertainty_refined"):
        deviations = result[kind]["bins_sd"]
        assert len(deviations) == len(result[kind]["bins_error"]) == 10
        assert result[kind]["sd_rms"] > 0


def test_tables_compare_each_variant_with_the_base(measured):
    results = {name: json.loads((measured / name / "result.json").read_text()) for name in ("base", "diagonal")}
    rows = {name: reproduce.read_rows(measured / name / "rows.csv") for name in results}
    table = reproduce.tables(results, rows)
    assert table.count("| diagonal |") == 3
    reproduce.calibration_picture(measured / "calibration.png", results)
    assert (measured / "calibration.png").stat().st_size > 0


def test_prior_table_has_both_posteriors():
    rows = reproduce.prior_table(samples=1).splitlines()[2:]
    assert len(rows) == 8
    assert "| 10.0 | 2.52 | " in rows[-1]


@pytest.mark.parametrize(("people", "chosen"), [(2, ["a", "b"]), (-1, ["d"])])
def test_subset_keeps_whole_people(tmp_path, people, chosen):
    scans = [{"image": f"{person}_{i}.nii", "subject": person} for person in "dbca" for i in range(2)]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": scans, "validation": scans[:1]}))
    assert reproduce.subset(tmp_path, tmp_path, None) == tmp_path / "datalist.json"
    folder = tmp_path / "variant"
    folder.mkdir()
    kept = json.loads(reproduce.subset(tmp_path, folder, people).read_text())
    assert sorted({scan["subject"] for scan in kept["training"]}) == chosen
    assert len(kept["training"]) == 2 * len(chosen)
    assert kept["validation"] == scans[:1]


def test_another_setting_does_not_reuse_a_training(tmp_path):
    args = type("Args", (), {"output": tmp_path, "slices": tmp_path, "size": "[32, 32]", "steps": 20})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "settings.json").write_text('{"size": [32, 32], "num_pairs": 80, "batch_size": 8}')
    with pytest.raises(ValueError, match="holds a training with other settings"):
        reproduce.run("base", args)


def test_a_variant_is_trained_on_its_people_and_measured(tmp_path, commands):
    args = {"output": tmp_path, "slices": tmp_path, "size": "[32, 32]", "steps": 20, "samples": 4, "pairs": 3}
    scans = [{"image": f"{person}.nii", "subject": person} for person in "dbca"]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": scans, "validation": scans[:1]}))
    reproduce.run("people_2", type("Args", (), args))
    training, measuring = commands
    given = dict(zip(training[4::2], training[5::2], strict=True))
    assert given["--data_list"] == str(tmp_path / "people_2" / "datalist.json")
    overlay = json.loads(Path(ast.literal_eval(given["--config_file"])[-1]).read_text())
    assert (overlay["size"], overlay["num_pairs"]) == ([32, 32], 16)
    assert "--people" not in given
    assert measuring[-6:] == ["--measure", "people_2", "--samples", "4", "--pairs", "3"]
