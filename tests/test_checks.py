"""Settings are checked by two functions, which say what came and what was wanted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom_components.checks import check_number, check_switch, writable_folder

NO_NUMBERS = [None, "1", "abc", True, math.nan, math.inf, -math.inf, [1], 1j]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_finite_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="expected learning_rate to be a number above 0, got ") as caught:
        check_number("learning_rate", value, above=0)
    assert repr(value) in str(caught.value)


@given(st.one_of(st.integers(-5, 5), st.floats(-5, 5)))
def test_numbers_within_the_bounds_pass_and_no_others(value):
    bounds = {"least": lambda v: v >= 1, "above": lambda v: v > 1, "most": lambda v: v <= 1, "below": lambda v: v < 1}
    for name, allows in bounds.items():
        for number in (value, np.float32(value)):
            if allows(number):
                check_number("it", number, **{name: 1})
            else:
                with pytest.raises(ValueError, match="expected it to be a number"):
                    check_number("it", number, **{name: 1})


@pytest.mark.parametrize("value", [1.0, 0.5, np.float64(2)])
def test_a_whole_number_has_no_decimals(value):
    with pytest.raises(ValueError, match="whole number of at least 1 and of at most 4"):
        check_number("it", value, least=1, most=4, whole=True)
    check_number("it", np.int64(2), least=1, most=4, whole=True)


@pytest.mark.parametrize("value", ["false", "true", 0, 1, None])
def test_a_switch_is_true_or_false(value):
    with pytest.raises(ValueError, match=f"expected resume to be True or False, got {value!r}"):
        check_switch("resume", value)


def test_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot make the output folder"):
            writable_folder(folder)
    assert writable_folder(tmp_path / "a" / "b").is_dir()
