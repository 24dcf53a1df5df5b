"""The experiments of AVSM: images whose headers are wrong by a known map."""

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks import avsm
from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans
from custom_components.networks.momentum_net import MomentumNetwork

pytestmark = pytest.mark.slow


def test_pairs_are_off_by_a_known_map_and_compared(tmp_path):
    """An oblique header moves the image by the map that was drawn, and the table has a row for each method."""
    write_phantom_scans(tmp_path / "scans", 4, (40, 36))
    torch.manual_seed(0)
    network = MomentumNetwork(2, (16, 32, 64, 64, 64))
    torch.save(network.state_dict(), tmp_path / "momentum.pt")
    out = tmp_path / "out"
    words = [str(tmp_path / "scans"), str(out), "--pairs", "2", "--no_itk", "--only", "avsm, 1 step"]
    avsm.main([*words, "--momentum_weights", str(tmp_path / "momentum.pt"), "--fixed_offset", "--scale", "0"])
    text = (out / "table.md").read_text()
    for name in ("affine: none", "affine: learned-1", "affine: learned-7", "avsm, 1 step"):
        assert text.count(f"| {name} |") == 1, name
    assert "\n2 pairs" in text
    given = load_list(tmp_path / "scans" / "datalist.json", "validation_pairs", tmp_path / "scans")
    made = load_list(out / "pairs.json", "none", out)
    before, after = (nib.load(item["moving"]).affine for item in (given[0], made[0]))
    matrix = after @ np.linalg.inv(before)
    angle = np.degrees(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2))
    assert angle == pytest.approx(20, abs=1e-3)
    centre = before @ [19.5, 17.5, 0, 1]
    assert np.linalg.norm((matrix @ centre - centre)[:3]) == pytest.approx(20, abs=1e-3)
    avsm.main([*words, "--momentum_weights", str(tmp_path / "momentum.pt")])  # what is there is not done again
    assert (out / "table.md").read_text().count("avsm, 1 step") == 1
    with pytest.raises(SystemExit):
        avsm.main([*words[:-1], "avsm, 9 steps"])
