"""Label maps that guide a refinement, from the command line and from Python."""

import nibabel as nib
import pytest

import custom_components as mz

QUICK = {"affine": "none", "spacing": 4.0, "average": [], "report#picture": False}


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
