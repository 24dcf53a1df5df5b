"""The notebooks are plain, linked, and run from their first cell to their last.

`make notebooks` sets MORPHZOO_NOTEBOOKS=full: their trainings are then as long as a reader's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SECONDS = 180  # of one core, at most
FULL = os.environ.get("MORPHZOO_NOTEBOOKS") == "full"


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@each
def test_a_notebook_is_small_and_has_no_output(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert path.stat().st_size < 12_000
    lines = [line for source in cells(path, "code") for line in source.splitlines()]
    assert [line for line in lines if len(line) > 120] == []


@each
def test_it_has_one_title_and_its_links_lead_somewhere(path):
    text = "\n\n".join(cells(path, "markdown"))
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        assert (path.parent / target).is_file(), target


@each
def test_the_page_of_notebooks_names_it_by_its_title(path):
    page = (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8")
    title = cells(path, "markdown")[0].splitlines()[0].removeprefix("# ")
    assert f"[{title}](../notebooks/{path.name})" in page


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One process for all notebooks, which imports torch and MONAI once; names do not outlive a notebook."""
    manager = pytest.importorskip("jupyter_client").KernelManager()
    pytest.importorskip("nbclient")
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    more |= {} if FULL else {"MORPHZOO_QUICK": "1"}
    manager.start_kernel(env=os.environ | more, cwd=tmp_path_factory.mktemp("notebooks"))
    yield manager
    manager.shutdown_kernel(now=True)


def cpu_seconds(manager: Any) -> float:
    """Of the kernel, and of its children that have ended."""
    times = pytest.importorskip("psutil").Process(manager.provisioner.pid).cpu_times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.mark.slow
@each
def test_it_runs(path, kernel, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = nbformat.v4.new_code_cell(f"%reset -sf\n%cd -q {tmp_path}")
    notebook.cells.insert(0, first)
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=10 * SECONDS)  # of a machine with other work
    before = cpu_seconds(kernel)
    client.execute()
    seconds = cpu_seconds(kernel) - before
    shutil.rmtree(tmp_path)
    assert [cell for cell in notebook.cells[1:] if cell.cell_type == "code" and cell.execution_count is None] == []
    print(f"{path.stem}: {seconds:.0f} CPU seconds")
    assert seconds < SECONDS
