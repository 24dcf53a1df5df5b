"""Maps of the estimated error: on the fixed image's grid, in mm, for any bundle and for any program's files."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY, read_json, workflow
from torch import nn

from custom_components.commands.optimize import optimize
from custom_components.commands.register import register
from custom_components.commands.workflow import check_takes_pairs
from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.error_estimation.estimator import ErrorEstimator, network_input
from custom_components.methods.error_estimation.reporting import ErrorReport, error_metrics
from custom_components.space.grids import Grid

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = REPOSITORY / "bundles" / "error_estimation"
SKEW = np.array([[0, -3.0, 0, 40], [0, 0, 2.0, -10], [1.5, 0, 0, 5], [0, 0, 0, 1]])


class Sees(nn.Module):
    """The error is the length of the displacement that is shown, in mm."""

    def forward(self, image):
        return 10 * image[:, 2:].norm(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_scans(folder, 4, (24, 28, 20), spacing_mm=(3.0, 2.0, 4.0), axcodes="LSA")
    return [str(path) for path in sorted((folder / "images").iterdir())]


def test_a_field_keeps_its_length_in_millimetres_on_the_networks_grid():
    ddf = torch.zeros(3, 20, 24, 30)
    ddf[0], ddf[1], ddf[2] = 2.0, 1.0, -1.0  # 3 mm, 3 mm, -2 mm: along S, L and A
    grid = Grid(SKEW, (20, 24, 30))
    image, own = network_input(torch.rand(1, 20, 24, 30), torch.rand(1, 20, 24, 30), ddf, grid)
    np.testing.assert_allclose(own.spacing, 2.0)
    assert [round(float(part.mean()), 4) for part in image[2:]] == [-0.3, -0.2, 0.3]  # R, A, S in units of 10 mm
    error = ErrorEstimator(network=Sees())(torch.rand(1, 20, 24, 30), torch.rand(1, 20, 24, 30), ddf, grid)
    assert error.shape == (1, 20, 24, 30)
    torch.testing.assert_close(error, torch.full_like(error, 22**0.5), rtol=1e-4, atol=1e-4)


def test_images_of_two_axes_are_refused():
    with pytest.raises(ValueError, match="3-D images alone"):
        network_input(torch.rand(1, 8, 8), torch.rand(1, 8, 8), None, Grid(np.eye(3), (8, 8)))


def test_measures_are_of_the_foreground():
    error = torch.arange(101.0).view(1, 101)
    assert error_metrics(error, error < 101) == {"estimated_error_median_mm": 50, "estimated_error_95_mm": 95}
    assert error_metrics(error, error > 90)["estimated_error_median_mm"] == 95
    assert np.isnan(error_metrics(error, error > 200)["estimated_error_median_mm"])


def test_register_writes_a_map_on_the_fixed_images_grid(scans, tmp_path):
    result = register(scans[0], scans[1], str(tmp_path), affine="none", optimize=0, error_map=True)
    there, fixed = nib.load(result.folder / "error_mm.nii.gz"), nib.load(scans[1])
    assert there.shape == fixed.shape
    np.testing.assert_allclose(there.affine, fixed.affine, atol=1e-4)
    values = np.asarray(there.dataobj)
    inside = values > 0
    metrics = read_json(result.folder / "metrics.json")
    assert np.median(values[inside]) == pytest.approx(metrics["estimated_error_median_mm"], abs=0.05)
    assert (values >= 0).all()
    assert (values[np.asarray(fixed.dataobj) == 0] > 0).mean() < 0.2  # a voxel of the model grid may show a part
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "error_mm.nii.gz" in page


def test_without_the_flag_there_is_none(scans):
    result = register(scans[0], scans[1], affine="none", optimize=0)
    assert not [name for name in result.metrics if name.startswith("estimated")]


def test_optimize_estimates_errors_too_and_better_answers_err_less_than_none(scans):
    done, none = (
        optimize(scans[0], scans[1], model="svf", affine="none", iterations=[n, n, n], error_map=True) for n in (12, 0)
    )
    assert done.metrics["estimated_error_median_mm"] > 0
    assert none.metrics["estimated_error_median_mm"] > 0


def test_a_large_error_is_a_warning_of_the_result(scans):
    overlay_limit = {"error_map#limit": 1e-6}
    result = register(scans[0], scans[1], affine="none", optimize=0, error_map=True, **overlay_limit)
    assert any("estimated to err by more than" in sentence for sentence in result.metrics["warnings"])


def test_slices_have_no_map(tmp_path):
    write_phantom_scans(tmp_path, 4, (32, 32))
    paths = [str(path) for path in sorted((tmp_path / "images").iterdir())]
    with pytest.raises(ValueError, match="--error_map estimates the errors of 3-D registrations"):
        register(paths[0], paths[1], affine="none", error_map=True)


def test_the_bundle_itself_registers_nothing():
    with pytest.raises(ValueError, match="--error_map"):
        check_takes_pairs(BUNDLE)
    with pytest.raises(ValueError, match="limit"):
        ErrorReport("nowhere.pt", limit=0)
    with pytest.raises(ValueError, match="error_weights"):
        ErrorReport(None)


def test_the_bundle_judges_files_of_any_program(scans, tmp_path):
    """The same images as files, with and without the field: a map for each, and a table."""
    result = register(scans[0], scans[1], str(tmp_path), affine="none", optimize=0, error_map=True)
    files = {"fixed": scans[1], "warped": str(result.folder / "warped.nii.gz")}
    items = [{**files, "id": "a", "field": str(result.folder / "forward_field.nii.gz")}, {**files, "id": "b"}]
    settings = {"output_dir": str(tmp_path / "maps"), "dataset#data": items}
    job = workflow(BUNDLE, "infer", [BUNDLE / "configs" / "inference.json"], settings)
    job.initialize()
    job.run()
    job.finalize()
    maps = [np.asarray(nib.load(tmp_path / "maps" / f"{name}_error_mm.nii.gz").dataobj) for name in "ab"]
    own = np.asarray(nib.load(result.folder / "error_mm.nii.gz").dataobj)
    inside = own > 0
    assert np.abs(maps[0] - own)[inside].mean() < 0.1 * own[inside].mean() + 0.05
    assert maps[1].shape == own.shape
    with open(tmp_path / "maps" / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fixed"] for row in rows] == [scans[1]] * 2
    assert float(rows[0]["estimated_error_median_mm"]) > 0
