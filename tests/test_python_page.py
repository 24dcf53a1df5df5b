"""Every example of docs/python.md runs as it stands there."""

import re
from pathlib import Path

import pytest

import custom_components as mz
from custom_components.data.phantoms import write_phantom_scans

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_scans(folder, n=2, size=(40, 36, 32), spacing_mm=2.0, num_validation=0)
    files = {"moving": "images/phantom_00", "fixed": "images/phantom_01", "moving_labels": "labels/phantom_00"}
    return {name: str(folder / f"{file}.nii.gz") for name, file in files.items()} | {"mz": mz}


def test_every_block_of_code_but_the_import_is_an_example():
    assert len(EXAMPLES) == PAGE.count("```python") - 1 == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = dict(names)
    exec(EXAMPLES[name], found)
    if name == "register":
        assert found["saved"].folder.is_dir()
        assert found["labels"].shape == found["result"].warped.shape
        assert abs(found["back"] - [[12.0, -3.5, 40.0]]).max() < 1
        assert Path("fixed_to_moving.h5").is_file()
    elif name == "pairs":
        printed = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in printed] == ["phantom_01__phantom_00", "back"]
        assert not any(tmp_path.iterdir())
    else:
        assert found["item"]["label"].shape == found["item"]["fixed"].shape
        assert found["original"]["moving"].shape == found["item"]["fixed"].shape
