"""The code of all exported bundles passes the format checks of MONAI's model zoo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from custom_components.commands.bundles import all_bundles
from custom_components.commands.exporting import export_bundle

# What the zoo's setup.cfg and runtests.sh say (commit bc3255b, 6c49e72, 0d81ae2 of Project-MONAI/model-zoo).
FLAKE8 = """[flake8]
select = B,C,E,F,N,P,T4,W,B9
max_line_length = 120
ignore = E203,E501,E741,W503,W504,C408,N812,B023
per_file_ignores = __init__.py: F401, __main__.py: F401
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "setup.cfg").write_text(FLAKE8)
    (folder / "pyproject.toml").write_text('[tool.black]\nline-length = 120\n[tool.isort]\nprofile = "black"\n')
    for bundle in all_bundles():
        if (bundle / "models" / "model.pt").is_file():  # export asks for weights
            export_bundle(bundle, str(folder / "models"))
    seen = set()
    for path in sorted((folder / "models").rglob("*.py")):  # bundles share most of their code
        code = (path.relative_to(folder / "models").parts[1:], path.read_bytes())
        if code in seen:
            path.unlink()
        seen.add(code)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["black", "--quiet", "--skip-magic-trailing-comma", "--check", "--diff", "models"],
        ["isort", "--line-length", "120", "--check", "models"],
        ["flake8", "--config", "setup.cfg", "models"],
    ],
    ids=lambda words: words[0],
)
def test_the_zoo_finds_nothing(exported, words):
    pytest.importorskip(words[0])
    done = subprocess.run([sys.executable, "-m", *words], cwd=exported, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
