"""The `morphzoo` command: one line for each error, exit code not 0, nothing half-written, earlier results untouched."""

import gc
import gzip
import json
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support import run

from custom_components.commands.bundles import bundles_folder
from custom_components.space import load_image


def test_evaluation_of_a_list_writes_a_table(scans, tmp_path):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    pair = {
        "moving": str(moving),
        "fixed": str(fixed),
        "label_moving": str(label_moving),
        "label_fixed": str(label_fixed),
    }
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"validation_pairs": [{**pair, "id": "one"}, {**pair, "id": "two"}]}))
    overlay = bundles_folder() / "overlays" / "training_free.json"
    assert (
        run(
            "evaluate",
            path,
            "-o",
            tmp_path / "out",
            "--overlay",
            overlay,
            "--iterations",
            "[2,2,2]",
            "--affine",
            "none",
        )
        is None
    )
    assert {"metrics.csv", "metrics.json", "index.html"} <= {p.name for p in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_an_evaluation_keeps_no_volume_of_an_earlier_pair(scans, tmp_path, monkeypatch):
    pair = {key: str(path) for key, path in zip(("moving", "fixed"), (scans[0][0], scans[1][0]), strict=True)}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"validation_pairs": [{**pair, "id": str(i)} for i in range(3)]}))
    read, alive = [], []

    def counting(path):
        gc.collect()
        alive.append(sum(reference() is not None for reference in read))
        volume = load_image(path)
        read.append(weakref.ref(volume))
        return volume

    monkeypatch.setattr("custom_components.space.volumes.load_image", counting)
    overlay = bundles_folder() / "overlays" / "training_free.json"
    words = ["--overlay", overlay, "--iterations", "[1,1,1]", "--affine", "none"]
    assert run("evaluate", path, "-o", tmp_path / "out", *words) is None
    assert alive == [0, 1] * 3


def bad_files(folder, good):
    image = nib.load(good)
    data = np.asarray(image.dataobj, dtype=np.float32)

    def save(name, array):
        nib.save(nib.Nifti1Image(array, image.affine), folder / name)
        return folder / name

    truncated = folder / "truncated.nii.gz"
    truncated.write_bytes(
        gzip.compress(good.read_bytes() if good.suffix != ".gz" else gzip.decompress(good.read_bytes()))[:2000]
    )
    infinite = data.astype(np.float32)
    infinite[3, 3, 3] = np.inf
    return {
        "missing": folder / "missing.nii.gz",
        "truncated": truncated,
        "four-dimensional": save("four.nii.gz", np.stack([data, data], -1)),
        "not finite": save("infinite.nii.gz", infinite),
        "constant": save("constant.nii.gz", np.ones_like(data)),
    }


@pytest.mark.parametrize("kind", ["missing", "truncated", "four-dimensional", "not finite", "constant"])
def test_bad_images_are_named_in_one_line(kind, scans, tmp_path):
    bad = bad_files(tmp_path, scans[0][0])[kind]
    out = tmp_path / "out"
    message = run("register", bad, scans[1][0], "-o", out)
    assert message.startswith("morphzoo: error: ")
    assert "\n" not in message
    assert bad.name in message
    assert not list(out.glob("*/*"))


def test_a_failing_run_leaves_earlier_results_alone(registered, scans, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in registered.iterdir()}
    bad = tmp_path / scans[0][0].name  # the same name: the same result folder
    bad.write_bytes(b"no image")
    assert "error" in run("optimize", bad, scans[1][0], "-o", registered.parent)
    assert before == {path.name: path.stat().st_mtime_ns for path in registered.iterdir()}


@pytest.mark.slow
def test_labels_of_another_size_without_a_frame_are_refused(scans, tmp_path):
    label = nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), None)
    label.header.set_qform(None, code=0)
    label.header.set_sform(None, code=0)
    nib.save(label, tmp_path / "label.nii.gz")
    message = run(
        "optimize", scans[0][0], scans[1][0], "-o", tmp_path / "out", "--label_moving", tmp_path / "label.nii.gz"
    )
    assert "label.nii.gz" in message


def test_a_checkpoint_of_another_architecture_is_named(scans, tmp_path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pt")
    message = run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", "--weights", tmp_path / "other.pt")
    assert message.startswith("morphzoo: error: ")
    assert "other.pt" in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--bundle", "nosuch"], "there is no bundle 'nosuch'; there are avsm, brain_extraction, conditional_atlas"),
        (["--max_epcohs", "3"], "no setting 'max_epcohs'"),
        (
            ["--bundle", "voxelmorph", "--samples", "2"],
            "voxelmorph has no setting 'samples'; latent_deformation, quicksilver and voxelmorph_probabilistic have",
        ),
        (["--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(words, part, scans, tmp_path):
    assert part in run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", *words)


def test_an_empty_list_is_named(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": []}))
    assert "list.json" in run("evaluate", tmp_path / "list.json", "-o", tmp_path / "out")


def test_an_output_folder_that_cannot_be_made_is_named(scans, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot make the output folder" in run("register", scans[0][0], scans[1][0], "-o", tmp_path / "file" / "out")


def test_points_without_coordinates_are_named(registered, tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    assert "p.csv" in run("apply", registered / "forward_field.nii.gz", tmp_path / "p.csv", tmp_path / "q.csv")
    assert not (tmp_path / "q.csv").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nothing"], "there is no bundle 'nothing'"),
        (["voxelmorph", "--for", "slicer"], "export takes --for monai-label"),
        (["voxelmorph", "--zipp"], "and --zip, not 'zipp'"),
        (["voxelmorph", "--atlas", "atlas.nii.gz"], "an atlas is for --for monai-label"),
        (["voxelmorph", "--zip", "out"], "--zip takes no value"),
        (["voxelmorph", "--for", "monai-label"], "needs --atlas IMAGE and --atlas-labels LABELS"),
    ],
)
def test_wrong_exports_are_refused_in_one_line(words, part, tmp_path):
    message = run("export", *words, "-o", tmp_path / "out")
    assert part in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_export_prints_what_it_wrote(tmp_path, capsys):
    assert run("export", "voxelmorph", "-o", tmp_path, "--zip") is None
    written = capsys.readouterr().out.split()
    assert [Path(path).suffix for path in written] == ["", ".zip", ".sha256"]
    assert all(Path(path).exists() for path in written)
