"""The bundle as MONAI Label's bundle app takes it: phase by phase, by the ids of its inference.json."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from support import oriented

from custom_components.commands.segment import segment
from custom_components.commands.strip import strip

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = REPOSITORY / "bundles" / "brain_extraction"
# What a request of the server holds beside the study, and what a client of it may ask.
SENT = {"model": "brain_extraction", "device": "cpu", "description": "", "model_filename": ["model.pt"], "labels": {}}


@pytest.fixture(scope="module", params=["LAS", "PIR", "oblique"])
def study(request, tmp_path_factory):
    """A bright ball in a frame."""
    size, spacing = (30, 34, 28), (6.0, 5.0, 6.0)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    distance = np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))
    image = np.where(distance < 65, 800, 30) + np.random.default_rng(0).integers(0, 30, size)
    affine = oriented("RAS" if request.param == "oblique" else request.param, size, spacing)
    if request.param == "oblique":
        affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.0), [3, 4, 5]) @ affine
    path = tmp_path_factory.mktemp("studies") / "study.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), path)
    return path


def config(output: Path) -> ConfigParser:
    """The server makes one for each phase, since it imports the bundle's code anew."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(BUNDLE), "output_dir": str(output)})
    return parser


def phase(key: str, output: Path) -> list:
    return [t for t in config(output).get_parsed_content(key).transforms if not isinstance(t, SaveImaged)]


def ask(path: Path, output: Path, **settings: object) -> dict:
    """What the server does with a request, up to the file that it writes."""
    data = {**SENT, **settings, "image": str(path), "image_path": str(path)}
    for transform in phase("preprocessing", output):
        data = transform(data)
    network = config(output).get_parsed_content("network_def")
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        data["pred"] = config(output).get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    for transform in phase("postprocessing", output):
        data = transform(data)
    return data


def check_restored(data: dict, path: Path) -> None:
    """`Restored` takes size and affine of the file from the image, and resizes what is not of that size."""
    image, file = data["image"], nib.load(path)
    assert isinstance(image, MetaTensor)
    assert tuple(data["pred"].shape) == (1, *image.meta["spatial_shape"]) == (1, *file.shape)
    np.testing.assert_allclose(image.meta["original_affine"], file.affine, atol=1e-4)


def test_a_study_becomes_the_label_map_that_segment_writes(study, tmp_path):
    data = ask(study, tmp_path / "server")
    check_restored(data, study)
    segment(str(study), output=str(tmp_path / "ours"), atlases=0)
    wanted = np.asarray(nib.load(tmp_path / "ours" / "study_labels.nii.gz").dataobj)
    np.testing.assert_array_equal(data["pred"][0].numpy(), wanted)
    assert len(np.unique(wanted)) > 3
    assert not (tmp_path / "server").exists()


def test_the_mask_can_be_asked_for_with_its_border(study, tmp_path):
    data = ask(study, tmp_path / "server", answer="mask", border=6, threshold=0.5)
    check_restored(data, study)
    strip(str(study), output=str(tmp_path / "ours"), border=6, threshold=0.5)
    wanted = np.asarray(nib.load(tmp_path / "ours" / "study_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(data["pred"][0].numpy(), wanted)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"answer": "image"}, "expected the answer 'labels' or 'mask', got 'image'"),
        ({"border": "$open('x', 'w')"}, "expected border to be a number, got"),
        ({"threshold": 2}, "expected threshold to be a number above 0 and below 1, got 2"),
        ({"optimize": 20}, "there is no setting 'optimize'; there are answer, border, threshold"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(study, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words.replace("$", r"\$").replace("(", r"\(").replace(")", r"\)")):
        ask(study, tmp_path, **settings)
