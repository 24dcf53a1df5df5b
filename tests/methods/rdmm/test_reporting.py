"""The map of the equivalent deviation."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from support import published

from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.rdmm.reporting import SigmaReport
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles


@pytest.mark.parametrize("size", [(26, 24), (26, 24, 18)], ids=["2-D", "3-D"])
def test_the_equivalent_deviation_is_written_in_millimetres(size, tmp_path):
    write_phantom_scans(tmp_path, 2, size, num_validation=0, spacing_mm=(1.5, 1.2, 2.0)[: len(size)])
    paths = {key: str(tmp_path / "images" / f"phantom_0{i}.nii.gz") for i, key in enumerate(("moving", "fixed"))}
    loaded = LoadPaird(spacing=1.5)(paths)
    grid = loaded["fixed"].shape[1:]
    half = [-(-n // 2) for n in grid]
    sigma = torch.linspace(2, 8, half[0]).view(1, -1, *[1] * (len(half) - 1)).expand(1, *half)
    pred = {"ddf": torch.zeros(len(grid), *grid), "warped": loaded["moving"], "seconds": torch.tensor(0.1)}
    item = {**loaded, "pred": {**pred, "sigma": sigma}}
    result = published(item, tmp_path / "out", PairFiles(("warped",)), PairReport(), SigmaReport())
    folder = result.folder
    written = nib.load(folder / "sigma.nii.gz")
    assert written.shape[: len(grid)] == tuple(grid)
    values = np.asarray(written.dataobj).squeeze()
    expected = np.linspace(2, 8, grid[0], dtype=np.float32)
    assert np.abs(values[:, 3, ...].reshape(grid[0], -1) - expected[:, None]).max() < 0.2
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 2 < metrics["sigma_mm"] < 8
    assert metrics["sigma_sd_mm"] > 0
    assert (folder / "sigma.png").stat().st_size > 1000
    assert {"sigma", "sigma_picture"} <= set(result.files)


def test_nothing_is_drawn_or_written_where_the_pair_has_none(tmp_path):
    write_phantom_scans(tmp_path, 2, (26, 24), num_validation=0)
    paths = {key: str(tmp_path / "images" / f"phantom_0{i}.nii.gz") for i, key in enumerate(("moving", "fixed"))}
    loaded = LoadPaird(spacing=1.0)(paths)
    grid = loaded["fixed"].shape[1:]
    pred = {"ddf": torch.zeros(2, *grid), "warped": loaded["moving"], "sigma": torch.full((1, 5, 5), 3.0)}
    reporters = PairFiles(("warped_label",)), PairReport(picture=False), SigmaReport()
    result = published({**loaded, "pred": pred}, tmp_path / "out", *reporters)
    assert not list(result.folder.glob("sigma*"))
    assert result.metrics["sigma_mm"] == pytest.approx(3.0)
