"""The publisher: files of a pair come together, those of an earlier run go, and nobody reads a scan twice."""

import gc
import json
import pickle
import shutil
import weakref

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch, list_data_collate
from support import published

from custom_components.data.phantoms import write_phantom_scans
from custom_components.fields import warp
from custom_components.methods.hypermorph.reporting import HyperReport
from custom_components.methods.rdmm.reporting import SigmaReport
from custom_components.space import load_image, volumes, write_affine_transform
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.propagation import LoadAtlasPaird, PropagateLabelsd
from custom_components.transforms.publish import OutputFile, Publishd, Report
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles
from custom_components.transforms.scan_paths import ScanPath, release
from custom_components.transforms.uncertainty import UncertaintyReport


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_scans(folder, 2, (26, 24), num_validation=0, spacing_mm=(1.0, 1.5))
    paths = {"moving": "images/phantom_00", "fixed": "images/phantom_01"}
    paths |= {"label_moving": "labels/phantom_00", "label_fixed": "labels/phantom_01"}
    return {key: str(folder / f"{name}.nii.gz") for key, name in paths.items()}


def registered(item, **pred):
    ddf = torch.full((2, *item["fixed"].shape[1:]), 0.5)
    return {**item, "pred": {"ddf": ddf, "warped": warp(item["moving"][None], ddf[None])[0], **pred}}


def everything(item):
    """The item with all that any reporter knows to report."""
    size = item["fixed"].shape[1:]
    samples = torch.stack([torch.full((2, *size), value) for value in (0.4, 0.6)])
    more = {"ddf_samples": samples, "velocity_sd": torch.ones(2, *size), "sigma": torch.full((1, *size), 3.0)}
    sweep = {"sweep_ddf": samples, "sweep_hyper": torch.tensor([[0.0], [1.0]]), "sweep_seconds": torch.tensor(0.1)}
    return registered(item, **more, **sweep, hyper=torch.tensor([0.3]))


def names(folder):
    return {path.name for path in folder.iterdir()}


# Files of an earlier run


def test_a_second_run_without_affine_labels_and_samples_leaves_nothing_of_the_first(paths, tmp_path):
    write_affine_transform(tmp_path / "shift.tfm", np.array([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]]))
    first = everything(LoadPaird(affine=str(tmp_path / "shift.tfm"))(paths))
    reporters = PairFiles(), PairReport(), UncertaintyReport(), HyperReport(), SigmaReport()
    folder = published(first, tmp_path / "out", *reporters).folder
    gone = {"affine.tfm", "warped_label.nii.gz", "sigma.nii.gz", "sigma.png", "sweep.csv", "sweep.png"}
    gone |= {"sweep_warped.nii.gz", "sweep_structures.csv", "sample_01_warped.nii.gz", "sample_02_field.nii.gz"}
    gone |= {"displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"}
    assert gone <= names(folder)
    images = {key: paths[key] for key in ("moving", "fixed")}
    result = published(registered(LoadPaird()(images)), tmp_path / "out", PairFiles(), PairReport())
    assert result.folder == folder
    assert names(folder) == {path.name for path in result.files.values()} | {"files.json"}
    assert not names(folder) & gone


def test_files_that_no_manifest_names_are_nobodys_to_delete_or_to_replace(paths, tmp_path):
    folder = tmp_path / "phantom_01__phantom_00"
    folder.mkdir()
    (folder / "warped_label.nii.gz").write_text("of a run before there were manifests")
    (folder / "notes.txt").write_text("mine")
    images = {key: paths[key] for key in ("moving", "fixed")}
    for _ in range(2):
        published(registered(LoadPaird()(images)), tmp_path, PairFiles(("warped",)))
        assert names(folder) == {"warped.nii.gz", "files.json", "warped_label.nii.gz", "notes.txt"}
    with pytest.raises(FileExistsError, match=r"warped_label\.nii\.gz is there already"):
        published(registered(LoadPaird()(paths)), tmp_path, PairFiles(("warped_label",)))
    assert (folder / "warped_label.nii.gz").read_text() == "of a run before there were manifests"


def copies(paths, folder):
    """The same pair by other files of the same names."""
    folder.mkdir()
    return {key: shutil.copy(paths[key], folder) for key in ("moving", "fixed")}


def test_pairs_of_equal_names_never_share_a_folder_and_a_pair_replaces_itself(paths, tmp_path):
    first = {key: paths[key] for key in ("moving", "fixed")}
    pairs = [first, copies(paths, tmp_path / "b"), copies(paths, tmp_path / "c")]
    results = [
        published(registered(LoadPaird()(pair)), tmp_path / "out", PairFiles(("warped",)), PairReport(picture=False))
        for pair in [*pairs, *reversed(pairs)]
    ]
    folders = [result.folder for result in results]
    assert folders[:3] == folders[:2:-1]
    assert len({*folders}) == 3
    assert {child.name for child in (tmp_path / "out").iterdir()} == {folder.name for folder in folders}
    for result, pair in zip(results, pairs, strict=False):
        assert result.metrics["id"] == result.id == result.folder.name
        assert json.loads(result.files["metrics"].read_text())["moving"] == pair["moving"]
    assert results[0].id == "phantom_01__phantom_00"
    assert results[1].id == "b_phantom_01__b_phantom_00"


def test_another_pair_of_an_id_is_refused_by_name(paths, tmp_path):
    item = {key: paths[key] for key in ("moving", "fixed")} | {"id": "p"}
    folder = published(registered(LoadPaird()(item)), tmp_path / "out", PairFiles(("warped",))).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = copies(paths, tmp_path / "b") | {"id": "p"}
    with pytest.raises(FileExistsError, match=r"out/p holds the result of .*phantom_00.nii.gz.*another output folder"):
        published(registered(LoadPaird()(other)), tmp_path / "out", PairFiles(("warped",)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("id", ["../../p", "/p", "..", "a/../../b", ".hidden", "x" * 300, "files.json", 0])
def test_no_id_leads_out_of_the_output(paths, tmp_path, id):
    item = {key: paths[key] for key in ("moving", "fixed")} | {"id": id}
    result = published(registered(LoadPaird()(item)), tmp_path / "in" / "out", PairReport(picture=False))
    assert result.folder.parent == tmp_path / "in" / "out"
    assert not result.folder.name.startswith(".")
    assert result.metrics["id"] == str(id)
    assert names(tmp_path) == {"in"}
    assert names(tmp_path / "in") == {"out"}
    assert (result.folder / "metrics.json").is_file()


def test_a_reporter_that_fails_leaves_the_earlier_run_alone(paths, tmp_path):
    item = registered(LoadPaird()(paths))
    folder = published(item, tmp_path, PairFiles(("warped", "warped_label"))).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write the results here \(No space left"):
        published(item, tmp_path, lambda pair, earlier: Report(files={"one": OutputFile("one.txt", fail)}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# Reporters


def test_reporters_touch_no_disk_and_hear_what_earlier_ones_said(paths, tmp_path):
    heard = []

    def first(pair, earlier):
        heard.append(earlier.metrics)
        return Report({"first": 1}, {"note": OutputFile("note.txt", lambda path: path.write_text(pair.name))})

    def second(pair, earlier):
        heard.append(earlier.metrics)
        assert not list(tmp_path.iterdir())
        return Report({"second": len(earlier.files)}, captions={"second": "number of files"})

    result = published(registered(LoadPaird()(paths)), tmp_path, first, second)
    assert heard == [{}, {"first": 1}]
    assert json.loads((result.folder / "metrics.json").read_text()) == {"first": 1, "second": 1, "warnings": []}
    assert (result.folder / "note.txt").read_text() == result.id
    where = f"results in {result.folder}; look at {result.folder / 'report.html'}"
    assert str(result).splitlines() == ["number of files".ljust(44) + "   1.0000", "", where]


# Reading


def count_reads(monkeypatch):
    """The paths that are read from now on."""
    read = []
    original = volumes._read_volume

    def counting(path):
        read.append(str(path))
        return original(path)

    monkeypatch.setattr(volumes, "_read_volume", counting)
    return read


def test_each_scan_is_read_once_for_all_reporters(paths, tmp_path, monkeypatch):
    read = count_reads(monkeypatch)
    reporters = PairFiles(), PairReport(surfaces=True), UncertaintyReport(), HyperReport(), SigmaReport()
    published(everything(LoadPaird()(paths)), tmp_path, *reporters)
    assert sorted(read) == sorted(paths.values())


def test_volumes_survive_the_way_through_the_loader(paths):
    loader = DataLoader(Dataset([paths], LoadPaird()), batch_size=1, num_workers=0, collate_fn=list_data_collate)
    (item,) = decollate_batch(next(iter(loader)))
    for key in paths:
        assert item[f"{key}_path"] == paths[key]
        np.testing.assert_array_equal(
            ScanPath.volume_of(item[f"{key}_path"]).data[0].squeeze(),
            np.asarray(nib.load(paths[key]).dataobj).squeeze(),
        )


def test_a_path_with_its_volume_can_be_sent_from_a_worker(paths):
    path = pickle.loads(pickle.dumps(ScanPath(load_image(paths["fixed"]))))
    assert path == paths["fixed"]
    assert torch.equal(ScanPath.volume_of(path).data, load_image(paths["fixed"]).data)


def test_a_volume_is_found_whoever_imported_the_class_of_its_path(paths):
    class ImportedAnew(str):
        volume = load_image(paths["moving"])

    path = ImportedAnew(paths["moving"])
    assert ScanPath.volume_of(path) is ImportedAnew.volume
    assert type(release({"moving_path": path})["moving_path"]) is str


def test_a_cohort_keeps_no_volume_of_an_earlier_pair(paths, tmp_path):
    alive, results = [], []
    for i in range(3):
        item = LoadPaird()({**paths, "id": str(i)})
        alive += [weakref.ref(item[f"{key}_path"].volume) for key in paths]
        results.append(Publishd(str(tmp_path), [PairFiles(("warped",)), PairReport(picture=False)])(registered(item)))
        del item
        gc.collect()
        assert [reference() for reference in alive] == [None] * len(alive)
    assert [result["fixed_path"] for result in results] == [paths["fixed"]] * 3


def test_a_released_item_is_refused_with_a_reason(paths, tmp_path):
    item = release(registered(LoadPaird()(paths)))
    assert type(item["fixed_path"]) is str
    with pytest.raises(ValueError, match="expected an item as LoadPaird made it"):
        published(item, tmp_path, PairFiles())


# The result


def test_a_result_holds_its_images_in_memory_and_is_the_same_when_read_from_its_files(paths, tmp_path):
    item = registered(LoadPaird()(paths), inverse_ddf=torch.full((2, *LoadPaird()(paths)["fixed"].shape[1:]), -0.5))
    reporters = [PairFiles(("warped", "warped_label", "composite")), PairReport(picture=False)]
    result = Publishd(str(tmp_path), reporters).registration(item)
    assert not any(tmp_path.iterdir())
    assert torch.equal(result.ddf.as_tensor(), item["pred"]["ddf"])
    np.testing.assert_allclose(result.ddf.affine, item["grid_affine"])
    saved = result.save(tmp_path)
    read = saved.in_files()
    assert set(result.arrays) == {"warped", "warped_label", "ddf", "inverse_ddf"}
    assert not read.arrays
    for name in ("warped", "warped_label"):
        here, there = getattr(result, name), getattr(read, name)
        assert here.shape == there.shape == (1, *nib.load(paths["fixed"]).shape)
        np.testing.assert_allclose(here.numpy(), there.numpy(), atol=1e-6)
        np.testing.assert_allclose(here.affine, there.affine, atol=1e-5)
    points = np.array([[1.0, 2.0, 0.0], [-3.0, 1.0, 0.0]])
    for name in ("transform", "inverse"):
        np.testing.assert_allclose(getattr(result, name).points(points), getattr(read, name).points(points), atol=1e-4)
    with pytest.raises(ValueError, match="was read from"):
        read.save(tmp_path)


def test_the_warped_image_of_the_model_grid_never_passes_for_that_of_the_native_grid(paths, tmp_path):
    reporters = [PairFiles(("composite",)), PairReport(picture=False)]
    result = Publishd(str(tmp_path), reporters).registration(registered(LoadPaird()(paths)))
    with pytest.raises(ValueError, match="there is no 'warped' in this result; there are ddf, transform"):
        _ = result.warped


def test_a_moving_scan_without_labels_can_itself_be_the_answer(paths):
    load = LoadAtlasPaird(atlas=paths["moving"], atlas_labels=paths["label_moving"])
    item = registered(load({"image": paths["fixed"], "moving": paths["moving"], "answer": "image"}))
    answer = PropagateLabelsd()(item)["pred"]
    assert answer.shape == load_image(paths["fixed"]).data.shape
    assert answer.dtype == torch.float32
