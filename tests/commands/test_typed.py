"""Texts and values become what a function or a bundle declares; nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_components.commands.bundles import all_bundles, find_bundle, registers
from custom_components.commands.typed import convert, converted, kinds_of
from custom_components.commands.workflow import check_settings


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        ("20", "int | None", 20),
        ("-3", "int", -3),
        (np.int64(4), "int", 4),
        (4.0, "int", 4),
        ("2", "float", 2.0),
        ("1e-3", "float", 1e-3),
        ("2024_01_01", "str", "2024_01_01"),
        ("1e5", "str", "1e5"),
        ("None", "str", "None"),
        ("None", "int | None", None),
        (None, "str", None),
        (Path("a"), "str", "a"),
        ("True", "str | bool | None", True),
        ("rigid", "str | bool | None", "rigid"),
        ("0.3", "float | Sequence[float] | str", 0.3),
        ("0.3,0.4", "float | Sequence[float] | str", [0.3, 0.4]),
        ("auto", "float | Sequence[float] | str", "auto"),
        ("[30, 30,20]", "int | Sequence[int]", [30, 30, 20]),
        ("30,30,20", "int | Sequence[int]", [30, 30, 20]),
        ((1, 2), "Sequence[int]", [1, 2]),
        ("3", "Sequence[int] | 'all'", [3]),
        ("all", "Sequence[int] | 'all'", "all"),
        ("auto", 'int | Literal["auto"] | None', "auto"),
        ("5", 'int | Literal["auto"] | None', 5),
        ("['warped','composite']", "Sequence[str]", ["warped", "composite"]),
        ("a,b.json", "str | Sequence[str]", "a,b.json"),
        ("[1, 'x']", "Any", [1, "x"]),
        ("{'1': [0.5, 0]}", "Mapping", {"1": [0.5, 0]}),
        ("__import__('os')", "Any", "__import__('os')"),
        ("[", "Any", "["),
    ],
)
def test_a_value_becomes_the_first_kind_that_it_fits(value, kinds, expected):
    found = convert("name", value, kinds)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kinds", "wanted"),
    [
        ("1.5", "int | None", "a whole number"),
        (1.5, "int", "a whole number"),
        (True, "int", "a whole number"),
        ("1e400", "int", "a whole number"),
        (float("inf"), "int", "a whole number"),
        ("nan", "float", "a number"),
        ("inf", "float", "a number"),
        ("two", "float | Sequence[float]", "a number or numbers with commas between them"),
        ("3,x", "Sequence[int] | 'all'", "whole numbers with commas between them or 'all'"),
        ("maybe", "bool", "True or False"),
        ({"_target_": "os.system"}, "str", "a text"),
        ("1", "Mapping", "names with values, {'NAME': VALUE}"),
        ("{'1': print()}", "Mapping", "names with values, {'NAME': VALUE}"),
        ({"_target_": "os.system"}, "Sequence[str]", "texts with commas between them"),
    ],
)
def test_what_fits_no_kind_is_refused_in_one_sentence(value, kinds, wanted):
    with pytest.raises(ValueError, match=f"--name: expected {wanted}, got"):
        convert("name", value, kinds)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_a_text_stays_the_text_that_was_typed(text):
    assert convert("name", text, "str") == text
    assert convert("name", text, "str | None") == text


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**17), 10**17), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_the_command_line(whole, number):
    assert convert("name", str(whole), "int") == whole
    assert convert("name", repr(number), "float") == number
    assert convert("name", str([number, whole]), "Sequence[float]") == [number, float(whole)]


def test_a_default_declares_its_kind():
    kinds = {True: "bool", 3: "int", 2.5: "float", "none": "str"}
    assert {default: kinds_of(default) for default in kinds} == kinds
    assert kinds_of([1, 2]) == "int | Sequence[int]"
    assert kinds_of(["a"]) == "Sequence[str]"
    assert kinds_of(None) == "Any"


def test_arguments_of_a_function_are_converted_by_its_annotations():
    def function(count: int | None = None, **others: object) -> None: ...

    assert converted(function, {"count": "3", "other": "3"}) == {"count": 3, "other": "3"}


def test_a_mapping_that_is_data_can_be_given_and_one_that_names_code_cannot():
    rdmm = find_bundle("rdmm")
    overlay = str(rdmm / "configs" / "inference_predefined.json")
    _, given = check_settings(rdmm, [overlay], {"regions": "{'2': [1, 0, 0, 0]}"}, 3)
    assert given["regions"] == {"2": [1, 0, 0, 0]}
    for name in ("predict", "postprocessing", "evaluator"):
        with pytest.raises(ValueError, match="is no setting but a part of the configuration"):
            check_settings(rdmm, [overlay], {name: "{'2': 3}"}, 3)


@pytest.mark.parametrize("bundle", [one for one in all_bundles() if registers(one)], ids=lambda bundle: bundle.name)
def test_settings_take_the_types_that_the_bundle_declares(bundle):
    given = {"precision": "bfloat16", "weights": "1", "save#write": "warped", "report#surfaces": "true"}
    _, found = check_settings(bundle, (), {**given, "labels": None}, 3)
    wanted = {"precision": "bfloat16", "weights": "1", "save#write": ["warped"], "report#surfaces": True}
    assert found == wanted
    for name, value in [("spacing", "wide"), ("report#surfaces", "3"), ("report#nothing", "3"), ("network", "x")]:
        with pytest.raises(ValueError, match=name):
            check_settings(bundle, (), {name: value}, 3)
