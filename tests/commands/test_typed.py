"""Texts and values become what a function or a bundle declares; nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

def test_a_mapping_that_is_data_can_be_given_and_one_that_names_code_cannot():
    rdmm = find_bundle("rdmm")
    overlay = str(rdmm / "configs" / "inference_predefined.json")
    _, given = check_settings(rdmm, [overlay], {"regions": "{'2': [1, 0, 0, 0]}"}, 3)
    assert given["regions"] == {"2": [1, 0, 0, 0]}
    for name in ("predict", "postprocessing", "evaluator"):
        with pytest.raises(ValueError, match="is no setting but a part of the configuration"):
            check_settings(rdmm, [overlay], {name: "{'2': 3}"}, 3)


@pytest.mark.parametrize("bundle", [one for one in all_bundles() if registers(one)], ids=lambda bundle: bundle.name)
