"""The gate for weights: its verdict, and a run of it on phantoms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from benchmarks import weights, weights_measures, weights_sets
from benchmarks.experiments import BUNDLES
from benchmarks.weights_measures import Contestant, Measurements, affordable
from benchmarks.weights_sets import Part
from benchmarks.weights_verdict import paired_interval, verdict
from custom_components.data.lists import load_list
from custom_components.data.phantoms import write_phantom_scans

PEOPLE = "abcd"
SHIPPED = BUNDLES / "voxelmorph" / "models" / "model.pt"


def rows(gain=0.0, noise=0.0, folds=0.0, seed=0):
    """All ordered pairs of four people; their scores differ much more from one another than two sets of rows do."""
    rng = np.random.default_rng(seed)
    pairs = [(m, f) for m in PEOPLE for f in PEOPLE if m != f]
    people = [{"id": m + f, "subject_moving": m, "subject_fixed": f, "folding_percent": folds} for m, f in pairs]
    return [
        {**pair, "dice_after": 0.6 + 0.02 * i + gain + noise * float(rng.standard_normal())}
        for i, pair in enumerate(people)
    ]


def judged(new, old, names=("heads",), **options):
    """The verdict for the same rows in each part; new and old by number of iterations."""
    parts = [Part(name, []) for name in names]
    by_part = [{(name, label): r for name in names for label, r in one.items()} for one in (new, old)]
    return verdict(parts, *by_part, **options)


def test_weights_that_are_better_beyond_the_noise_beat_the_others():
    found = judged({"0": rows(0.02, noise=0.004)}, {"0": rows()})
    assert found.beats
    assert "heads, 0 iterations: better +0.0" in found.reasons[0]


@pytest.mark.parametrize(
    "new",
    [rows(), rows(-0.02), rows(0.0, noise=0.02), rows(0.002, noise=0.03, seed=3)],
    ids=["same", "worse", "noise", "drowned"],
)
def test_weights_that_are_equal_worse_or_lost_in_noise_do_not(new):
    assert not judged({"0": new}, {"0": rows()}).beats


def test_noise_alone_seldom_beats():
    found = [judged({"0": rows(noise=0.01, seed=seed)}, {"0": rows()}).beats for seed in range(200)]
    assert np.mean(found) < 0.06


def test_what_is_better_alone_and_worse_refined_does_not_beat():
    found = judged({"0": rows(0.05), "20": rows(-0.01)}, {"0": rows(), "20": rows()})
    assert not found.beats
    assert "heads, 20 iterations: worse" in found.reasons[1]


def test_a_loss_within_the_tolerance_is_none():
    new, old = {"0": rows(0.05), "20": rows(-0.0015)}, {"0": rows(), "20": rows()}
    assert judged(new, old).beats
    assert not judged(new, old, loss=0.001).beats


def test_more_folds_than_the_tolerance_do_not_beat():
    assert not judged({"0": rows(0.05, folds=0.03)}, {"0": rows(folds=0.01)}).beats
    assert judged({"0": rows(0.05, folds=0.03)}, {"0": rows(folds=0.01)}, folds=0.05).beats


def test_one_part_may_be_equal_and_none_worse():
    parts, old = [Part("heads", []), Part("brains", [])], {("heads", "0"): rows(), ("brains", "0"): rows()}
    assert verdict(parts, {**old, ("heads", "0"): rows(0.05)}, old).beats
    assert not verdict(parts, {("heads", "0"): rows(0.05), ("brains", "0"): rows(-0.05)}, old).beats


@pytest.mark.parametrize("word", ["before", "aligned"])
def test_the_table_has_the_score_before_under_either_of_its_names(word, tmp_path):
    """Pairs that are aligned first have no score before, but one after the alignment."""
    found = Measurements(tmp_path, "voxelmorph", 12)
    found.rows["brains", "new", "0"] = [
        {"subject_moving": "a", "subject_fixed": "b", f"ncc_{word}": 0.25, "ncc_after": 0.75, "cpu_seconds": 1.0}
        | dict.fromkeys(weights.COLUMNS, 1.0)
    ]
    line = weights.table([Part("brains", [], "ncc_after")], found, "shipped").splitlines()[-1]
    assert "0.25" in line
    assert "0.75" in line


def test_interval_is_that_of_pairs_of_people():
    # Both directions of a pair agree, so that twelve pairs tell no more than six.
    new = rows()
    for row in new:
        row["dice_after"] += 0.01 * ("a" in row["id"])
    found = paired_interval(new, rows(), "dice_after")
    assert found.mean == pytest.approx(0.005)
    half = 2.5706 * np.std([0.01] * 3 + [0.0] * 3, ddof=1) / 6**0.5  # Student's t with 5 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.005 - half, 0.005 + half), abs=1e-5)


def test_one_pair_of_people_proves_nothing():
    assert paired_interval(rows(0.5)[:1], rows()[:1], "dice_after").low == -np.inf


def test_rows_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match="same pairs"):
        paired_interval(rows(), rows()[::-1], "dice_after")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1550, [30, 30, 20]),
        (1000, [30, 30, 11]),
        (155, [30, 16, 0]),
        (77.5, [30, 6, 0]),
        (6, [6, 0, 0]),
        (0.4, [0, 0, 0]),
    ],
)
def test_equal_time_buys_coarse_iterations_first(seconds, expected):
    # In 3-D an iteration at a level costs 1, 8 and 64: 30 + 240 + 1280.
    assert affordable(seconds, 1550, [4, 2, 1], [30, 30, 20], 3) == expected


def test_iterations_are_numbers_auto_and_the_bundles_own():
    own = weights._iterations("0,auto,default,20", ConfigParser({"optimize": 20}))
    assert own == {"0": {"optimize": 0}, "auto": {"optimize": "auto"}, "20": {"optimize": 20}}
    assert weights._iterations("0,5", ConfigParser({"iterations": [20, 10]})) == {"default": {}}


def test_a_pair_is_measured_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(weights_measures, "measure", lambda *given: asked.append(given) or {"id": "ab", "x": 1.0})
    part, network = Part("heads", [{"id": "ab"}]), Contestant("new", "new-1", {"weights": "new.pt"})
    found = [Measurements(tmp_path, "b", 1).add(part, network, "5", {"optimize": 5}) for _ in range(2)]
    assert found == [[{"id": "ab", "x": 1.0}]] * 2
    ((bundle, _, _, settings, _),) = asked
    assert (bundle, settings) == ("b", {"weights": "new.pt", "optimize": 5})


@pytest.fixture
def phantom_set(tmp_path, monkeypatch):
    """A set of six pairs of phantoms in place of the real ones; main's words for it."""

    def make(data, cache):
        path = write_phantom_scans(cache, 6, (32, 32, 32), spacing_mm=2.0, num_validation=4)
        pairs = [p for p in load_list(path, "validation_pairs") if p["moving"] < p["fixed"]]
        people = [dict(zip(("subject_moving", "subject_fixed"), p["id"].split("-to-"), strict=True)) for p in pairs]
        return [Part("phantoms", [p | q for p, q in zip(pairs, people, strict=True)])]

    monkeypatch.setattr(weights, "SETS", {"phantoms": (3, make)})
    return ["--bundle", "voxelmorph", "--output", str(tmp_path)]


@pytest.mark.slow
def test_the_gate_measures_compares_and_keeps(phantom_set, tmp_path, capsys):
    words = [*phantom_set, "--iterations", "0"]
    state = torch.load(SHIPPED, weights_only=True)
    torch.save({k: -v if k.startswith("flow.") else v for k, v in state.items()}, tmp_path / "backwards.pt")
    assert weights.main([*words, "--against", str(tmp_path / "backwards.pt"), str(SHIPPED)]) == 0
    text = capsys.readouterr().out
    assert "model.pt beats" in text
    assert ", the time of 0 | 6 |" in text
    assert "| phantoms | training-free | 30-30-20 | 6 |" in text
    assert len(list(tmp_path.glob("voxelmorph/phantoms/*/*/*.json"))) == 6 * 4
    row = json.loads(next(tmp_path.glob("voxelmorph/phantoms/model-*/0/*.json")).read_text())
    assert {"dice_after", "hd95_after_mm", "sd_log_jacobian", "inverse_consistency_mm", "cpu_seconds"} <= row.keys()
    assert (tmp_path / "voxelmorph" / "rows.csv").is_file()
    # The same weights again, against themselves: nothing is measured anew.
    assert weights.main([*words, "--no-free", str(SHIPPED)]) == 1
    assert "min left" not in capsys.readouterr().out


def flat(path: Path):
    torch.save({"x.weight": torch.zeros(1, 1, 3, 3)}, path)
    return path


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing.pt"], "missing.pt: there is no such file of weights"),
        ([str(SHIPPED), "--sets", "tails"], "there is no set tails; there are phantoms"),
        (["flat.pt", "--sets", "phantoms"], "the weights are for 2-D images, and those of phantoms are not"),
        (["--bundle", "conditional_atlas"], "registers single scans to its template"),
    ],
)
def test_errors_are_one_sentence_and_another_exit_code(phantom_set, tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    flat(tmp_path / "flat.pt")
    assert weights.main([*phantom_set, *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("dims", "wanted"), [(2, ["flat"]), (3, ["solid"])])
@pytest.mark.parametrize("sets", [None, "flat,solid"])
def test_weights_are_measured_on_the_sets_of_their_dimension(monkeypatch, tmp_path, sets, dims, wanted):
    makers = {name: (d, lambda data, cache, name=name: [Part(name, [])]) for name, d in (("flat", 2), ("solid", 3))}
    monkeypatch.setattr(weights, "SETS", makers)
    args = weights._parser().parse_args(["--output", str(tmp_path), *(["--sets", sets] if sets else [])])
    assert [part.name for part in weights._parts(args, dims)] == wanted


def test_weights_of_a_dimension_that_no_shipped_ones_have_are_compared_with_an_untrained_network(tmp_path):
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 3}
    config = ConfigParser({"weights": str(flat(tmp_path / "flat.pt")), "network_def": network})
    args = weights._parser().parse_args(["--output", str(tmp_path)])
    assert weights._against(args, config, 2).name == "shipped"
    assert weights._against(args, config, 3).name == "untrained"


def test_every_real_set_makes_its_pairs(test_data, tmp_path):
    """All but the rendered people and the heads, which take long to prepare."""
    for name in ("brains", "slabs", "t1t2"):
        for part in weights_sets.SETS[name][1](test_data, tmp_path):
            assert len(part.pairs) >= 6
            for pair in part.pairs:
                assert {"id", "subject_moving", "subject_fixed"} <= pair.keys()
                assert pair["subject_moving"] != pair["subject_fixed"]
                assert all(Path(pair[role]).is_file() for role in ("moving", "fixed"))
