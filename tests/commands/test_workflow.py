"""What commands make of their arguments."""

from pathlib import Path

import pytest

from custom_components.commands.workflow import as_list


@pytest.mark.parametrize(
    ("value", "parts"),
    [("a.tfm,b.tfm", ["a.tfm", "b.tfm"]), (Path("a.tfm"), ["a.tfm"]), ([Path("a.tfm"), "b.tfm"], ["a.tfm", "b.tfm"])],
    ids=["text", "path", "list"],
)
def test_files_come_as_text_as_a_path_or_as_a_list(value, parts):
    assert as_list(value) == parts
