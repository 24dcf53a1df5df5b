"""The averaging of networks' answers as the bundles configure it."""

from __future__ import annotations

import pytest

from benchmarks.experiments import bundle_config
from custom_components.commands.settings import typed_settings


@pytest.mark.parametrize("name", ["avsm", "rdmm", "synthmorph", "voxelmorph", "voxelmorph_probabilistic"])
@pytest.mark.parametrize(("optimize", "expected"), [(0, ["mirror"]), (20, [])])
def test_answers_are_averaged_where_nothing_is_refined(name, optimize, expected):
    parser = bundle_config(name, ["inference"], optimize=optimize, average=["mirror"])
    predict = parser.get_parsed_content("predict")
    assert (predict.mirror, predict.swap) == ("mirror" in expected, False)
    assert typed_settings(name, parser.config, {"average": "[]"}) == {"average": []}
