"""`--guide`: label maps that guide a refinement, given or found."""

import nibabel as nib
import pytest
from support import run

import custom_components as mz
from custom_components.commands import guides
from custom_components.methods.brain_extraction.network import BrainUNet
from custom_components.methods.brain_extraction.segmenter import BrainSegmenter
from custom_components.space import load_image

QUICK = {"affine": "none", "spacing": 4.0, "average": [], "report#picture": False}


@pytest.fixture
def untrained(monkeypatch):
    """The finder takes a network as it is."""
    monkeypatch.setattr(guides.LabelFinder, "segmenter", BrainSegmenter(network=BrainUNet()))


def test_given_maps_guide_the_refinement(scans):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    registrar = mz.Registrar("synthmorph", optimize=10, **QUICK)
    labels = {"label_moving": label_moving, "label_fixed": label_fixed}
    guided = registrar(moving, fixed, guide_moving=label_moving, guide_fixed=nib.load(label_fixed), **labels)
    alone = registrar(moving, fixed, **labels)
    assert guided.metrics["dice_after"] > alone.metrics["dice_after"] + 0.005
    assert guided.metrics["folding_percent"] == 0


def test_a_map_of_one_image_guides_nothing(scans):
    (moving, label), (fixed, _) = scans[:2]
    with pytest.raises(ValueError, match="expected guides of both images, got that of one"):
        mz.register(moving, fixed, guide_moving=label, optimize=2, **QUICK)


def test_found_maps_lie_on_the_images_own_grids(scans, untrained):
    (moving, _), (fixed, _) = scans[:2]
    found = guides.LabelFinder()({"moving": str(moving), "fixed": str(fixed)})
    for role, path in (("moving", moving), ("fixed", fixed)):
        labels, image = load_image(found[f"guide_{role}"]), load_image(str(path))
        assert labels.grid.size == image.grid.size
        assert (labels.affine == image.affine).all()
    result = mz.register(moving, fixed, guide="labels", optimize=2, **QUICK)
    assert result.metrics["folding_percent"] == 0


def test_labels_are_found_in_whole_heads_alone(slices, untrained, capsys):
    folder = slices.parent
    moving, fixed = sorted((folder / "images").iterdir())[:2]
    text = run("register", moving, fixed, "--guide", "labels", "--optimize", "2")
    assert "--guide labels finds structures in 3-D heads, got a slice" in (text or "") + capsys.readouterr().err


def test_found_and_given_maps_are_not_mixed(scans, untrained):
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    with pytest.raises(ValueError, match="not both"):
        mz.register(moving, fixed, guide="labels", guide_moving=label_moving, guide_fixed=label_fixed, **QUICK)
