"""Peers start from the same affine and are measured as we are; a stand-in for them, since none is installed here."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, peers_curves
from custom_components.data.phantoms import write_phantom_scans
from custom_components.space import write_affine_transform

# Without torch, whose import takes long. The affine moves by voxels along the first axis, the field by one back.
FAKE = """
import json, sys
import nibabel as nib
import numpy as np

job = json.load(sys.stdin)
if job["tool"] == "greedy":
    sys.exit("greedy is unwell")
labels, fixed = nib.load(job["label_moving"]), nib.load(job["fixed"])
array = np.asarray(labels.dataobj)
shift = round(float(open(job["affine"]).read().split("Parameters:")[1].split()[9]))
aligned = np.zeros_like(array)
aligned[shift:] = array[:-shift]
for name, found in {"aligned": aligned, "labels": array}.items():
    nib.save(nib.Nifti1Image(found, fixed.affine), f"{job['folder']}/{name}.nii.gz")
lps = np.zeros((*fixed.shape, 1, 3), np.float32)
lps[..., 0] = -fixed.affine[0, 0]
field = nib.Nifti1Image(lps, fixed.affine)
field.header.set_intent("vector")
nib.save(field, f"{job['folder']}/field.nii.gz")
print("talk\\n" + json.dumps({"version": "1", "seconds": 2.0, "cpu_seconds": 1.0}))
"""


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of one phantom onto itself, by an affine that is one voxel off; the stand-in for a peer moves it back."""
    scans = json.loads(Path(write_phantom_scans(tmp_path, 4, (16, 16, 16))).read_text())
    scan = scans["validation"][0]
    shift = [[1, 0, 0, -1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    write_affine_transform(tmp_path / "shift.tfm", np.array(shift))
    pair = {"id": "one", "affine": str(tmp_path / "shift.tfm")}
    pair |= dict.fromkeys(("moving", "fixed"), scan["image"])
    pair |= {f"label_{role}": scan["label"] for role in ("moving", "fixed")}
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": [pair]}))
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(peers, "PROGRAM", tmp_path / "fake.py")
    return tmp_path / "list.json"


@pytest.mark.slow
def test_a_row_a_pair_is_measured_once_and_a_peer_that_fails_says_so(pairs, tmp_path, capsys, monkeypatch):
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(peers, "environment", lambda _, packages: asked.append(packages) or sys.executable)
    table = tmp_path / "peers.csv"
    words = [str(pairs), str(table), "--only", "SyN"]
    peers.main(words)
    with open(table, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["pair"], row["peer"], row["version"]) == ("one", "SyN", "1")
    assert (float(row["dice_before"]), float(row["hd95_before_mm"])) == (1, 0)  # the headers are right
    assert float(row["dice_aligned"]) < 0.95
    assert float(row["dice_after"]) > 0.97
    assert {"dice_before_3", "dice_aligned_3", "dice_after_3", "hd95_aligned_mm"} <= set(row)
    assert (float(row["folding_percent"]), float(row["sd_log_jacobian_in_labels"])) == (0, 0)
    assert float(row["cpu_seconds"]) == 1
    assert asked == [("antspyx", "picsl_greedy", "SimpleITK")]
    with pytest.raises(RuntimeError, match="greedy is unwell"):
        peers.main([*words[:-1], "greedy 2"])
    monkeypatch.setattr(peers, "register", lambda *_: pytest.fail("the pair was measured again"))
    peers.main(words)
    assert "| SyN | 1 | 1.000 | 0.427 |" in capsys.readouterr().out
    table.write_text(table.read_text().replace("dice_aligned", "dice_first"))
    with pytest.raises(SystemExit):
        peers.main(words)
    assert "its dice_before is dice_aligned now" in capsys.readouterr().err


@pytest.mark.slow
def test_ours_stands_in_the_same_table(pairs, tmp_path, monkeypatch):
    ours = peers.Peer("morphzoo", {"words": ["optimize", "--iterations", "2"]})
    monkeypatch.setattr(peers, "CURVES", {"few": ours})
    peers.main([str(pairs), str(tmp_path / "peers.csv"), "--only", "few"])
    with open(tmp_path / "peers.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["dice_before"]) == 1
    assert float(row["dice_aligned"]) < 0.95
    assert float(row["dice_after"]) >= float(row["dice_aligned"])
    assert float(row["sd_log_jacobian"]) < 0.5


def test_curves_are_means_over_the_pairs_that_all_have(tmp_path):
    rows = [("one", "greedy 2 (1 0.35)", 0.8, 0.4), ("two", "greedy 2 (1 0.35)", 0.6, 0.2)]
    rows += [("one", "greedy 2 (2.5 1)", 0.7, 0.3), ("one", "default (1)", 0.9, 0.1)]
    with open(tmp_path / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["pair", "peer", "dice_after", "sd_log_jacobian_in_labels"])
        table.writerows(rows)
    found = peers_curves.curves([tmp_path / "table.csv"])
    assert found == {"greedy 2": [(0.3, 0.7), (0.4, 0.8)], "default": [(0.1, 0.9)]}
