"""The limits that keep the package readable; `benchmarks/structure.py` lists what comes near them."""

from pathlib import Path

import pytest

from benchmarks import structure

ROOT = Path(__file__).parents[1]

LIMITS = {"files": 350, "functions": 45, "constructors": 8, "complexity": 15}


@pytest.fixture(scope="module")
def found():
    return structure.measure(ROOT)


@pytest.mark.parametrize("kind", LIMITS)
def test_nothing_is_longer_wider_or_more_complex_than_the_limit(found, kind):
    large = {key for key, value in getattr(found, kind).items() if value > LIMITS[kind]}
    assert large == set()


def test_any_stands_only_where_other_packages_force_it(found):
    assert found.any_lines <= 70


def test_rooms_do_not_import_in_a_circle(found):
    assert structure.find_circles(found.arrows) == []


def test_circles_are_found_in_a_graph():
    chain = {("a", "b"), ("b", "c"), ("a", "c")}
    assert structure.find_circles(chain) == []
    assert structure.find_circles(chain | {("c", "b")}) == [["b", "c"]]
    assert structure.find_circles(chain | {("c", "a"), ("d", "d")}) == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("body", "complexity", "lines"),
    [
        ("return x", 1, 2),
        ('"""Two\n    lines."""\n    return x', 1, 2),
        ("if x and y:\n        return 1\n    return 2", 3, 4),
        ("return [a for a in x if a if a > 1]", 4, 2),
        ("for a in x:\n        def inner():\n            if a: pass\n    return a", 2, 5),
    ],
)
def test_functions_are_measured_as_radon_does_and_without_docstring(tmp_path, body, complexity, lines):
    package = tmp_path / "custom_components"
    package.mkdir()
    (package / "one.py").write_text(f"def f(x, y):\n    {body}\n")
    measured = structure.measure(tmp_path)
    assert measured.complexity["one.py:1 f"] == complexity
    assert measured.functions["one.py:1 f"] == lines


def test_arrows_go_from_room_to_room(tmp_path):
    package = tmp_path / "custom_components"
    for name, text in {
        "fields.py": "import torch\n",
        "losses/overlap.py": "from ..fields import warp, compose\nfrom .similarity import x\n",
        "methods/one/network.py": "from ...losses.overlap import dice\nfrom ...methods.one.data import y\n",
        "commands/run.py": "import custom_components.methods.one.network\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert dict(structure.measure(tmp_path).arrows) == {
        ("losses", "fields"): 2,
        ("methods/one", "losses"): 1,
        ("commands", "methods/one"): 1,
    }
