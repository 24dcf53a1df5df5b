"""What cannot fit into memory is refused in one sentence, with the estimate and what to do."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components import memory
from custom_components.memory import available_bytes, check_memory
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.inference import SamplesInferer
from custom_components.space import load_image
from custom_components.space.fit import fitting_grid

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
@pytest.mark.skipif(
    not LARGE_PAGES.is_file() or "[madvise]" not in LARGE_PAGES.read_text(), reason="large pages come on request"
)
@pytest.mark.parametrize(("given", "large"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_a_command_takes_large_pages_unless_the_environment_forbids_it(given, large):
    script = "import workers; from custom_components.memory import ask_for_large_pages; ask_for_large_pages(); "
    command = [sys.executable, "-c", script + "print(workers.page_faults(0))"]
    names = ("MALLOC_", "THP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(names)} | given
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    pages = 10_000_000 * 4 // 4096  # small ones of one array
    assert (int(done.stdout) < pages) == large


def test_memory_is_free_and_finite_here():
    assert 2**20 < available_bytes() < 2**50


def test_a_machine_that_says_nothing_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: float("inf"))
    check_memory(1e30, "all", "nothing")


@pytest.mark.parametrize(("name", "free"), [("inactive_file", 700), ("total_inactive_file", 700), ("anon", 400)])
def test_files_that_were_read_leave_a_container_their_memory(tmp_path, name, free):
    for file, content in (("limit", "1000"), ("usage", "600"), ("stat", f"{name} 300\n")):
        (tmp_path / file).write_text(content)
    assert memory._container(*(str(tmp_path / file) for file in ("limit", "usage", "stat"))) == free


def test_a_container_without_a_limit_has_all_memory(tmp_path):
    (tmp_path / "limit").write_text("max\n")
    assert memory._container(str(tmp_path / "limit"), str(tmp_path / "x"), str(tmp_path / "x")) == float("inf")


def bomb(path, shape):
    """A small file whose header says that it holds many voxels, all 0."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    with gzip.open(path, "wb") as file:
        file.write(header.binaryblock + b"\0\0\0\0" + bytes(10**6))
    return path


@pytest.mark.parametrize("shape", [(30000, 30000, 30000), (20000, 20000, 100, 30000)])
def test_a_compressed_file_that_would_fill_the_memory_is_not_read(tmp_path, shape):
    with pytest.raises(ValueError, match=r"bomb.nii.gz: its header says .* needs about .* GiB of memory"):
        load_image(bomb(tmp_path / "bomb.nii.gz", shape))


@pytest.mark.parametrize("spacing", [1e-3, 1e-9, 1e-30, 1e-300, [1e-9, 1, 1]])
def test_a_spacing_that_is_too_fine_is_refused(tmp_path, spacing):
    image = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([20.0, 20, 20, 1])), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a.nii: a model grid of .* voxels needs about .*; give a coarser --spacing"):
        fitting_grid(load_image(tmp_path / "a.nii"), spacing, fit=False)


def test_too_many_samples_are_refused():
    answer = {"ddf": torch.zeros(1, 3, 8, 8, 8), "posterior": torch.zeros(1, 6, 4, 4, 4)}
    inferer = SamplesInferer(lambda *_, **__: answer, GaussianVelocity(), samples=10**9)
    with pytest.raises(ValueError, match=r"drawing 1000000000 samples needs about .* GiB .* fewer --samples"):
        inferer(torch.zeros(1, 2, 8, 8, 8), None)
