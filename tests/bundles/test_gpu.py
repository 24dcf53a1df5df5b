"""Bundles on a GPU, which is compared with the CPU. The node may lack itk, matplotlib and TensorBoard.

What differs between devices by nature is made on the CPU for both: random numbers, which no seed makes equal, and the
answers of the optimiser. L-BFGS decides the length of its first steps by differences of the loss that are rounding:
images that change by 1e-7 of themselves move the field of metric_learning by up to 0.6 voxel. There the devices are
compared in what they reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import BUNDLES, FIRST, infer, pairs_of, read_image, train
from torch import Tensor

from custom_components.data.batches import SynthesizedBatch
from custom_components.fields import warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.warp import RandomWarp

pytestmark = pytest.mark.filterwarnings("ignore")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class SharedOptimum:
    """In place of `PairwiseOptimizer.__call__`: what the CPU finds serves the other device, too.

    The other device optimises as well: its own answer must lower the loss by at least half of what the CPU's does.
    """

    def __init__(self) -> None:
        self.optimize, self.found = PairwiseOptimizer.__call__, []

    @contextmanager
    def on(self, device: str) -> Iterator[None]:
        """All calls are those of one device; the CPU comes first."""

        def optimized(optimizer, moving, fixed, parameters=None, masks=None, constants=None, deformation=None, finer=1):
            own = self.optimize(optimizer, moving, fixed, parameters, masks, constants, deformation)
            if not any(optimizer.iterations):  # a network's output, passed through
                return own
            if device == "cpu":
                self.found.append(own)
                return own
            shared = self.found.pop(0).to(own)
            batch = {"moving": moving, "fixed": fixed, **(masks or {}), **(constants or {})}
            zero = torch.zeros_like(own)
            at_zero, at_shared, at_own = (loss_at(optimizer, p, batch, deformation) for p in (zero, shared, own))
            assert at_own <= (at_zero + at_shared) / 2 + 1e-4 * abs(at_zero)
            return shared

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PairwiseOptimizer, "__call__", optimized)
            yield


@torch.no_grad()
def loss_at(optimizer: PairwiseOptimizer, parameters: Tensor, batch: dict[str, Tensor], deformation) -> float:
    pred = (deformation or optimizer.deformation)(parameters, batch["fixed"].shape[2:])
    return float(optimizer.loss({**pred, "warped": warp(batch["moving"], pred["ddf"])}, batch))


def check_training_on(device: str, bundle: Path, scans: Path, folder: Path, **settings) -> None:
    losses, optimum = {}, SharedOptimum()
    for name in ("cpu", device):
        with optimum.on(name):
            losses[name] = train(bundle, scans, folder / name, device=torch.device(name), **settings)
    assert (folder / device / "model.pt").exists()
    np.testing.assert_allclose(losses[device], losses["cpu"], rtol=0.02)
    assert losses[device][0] == pytest.approx(losses["cpu"][0], rel=1e-3)


def check_inference_on(device: str, bundle: Path, scans: Path, output: Path, weights: Path, **also) -> None:
    results, optimum = [], SharedOptimum()
    for name in ("cpu", device):
        settings = {"weights": str(weights), "device": torch.device(name), "report#picture": False, **also}
        with optimum.on(name):
            results.append(infer(bundle, scans, output / name, **settings))
    names = {path.relative_to(results[0]) for path in results[0].glob("*/*")}
    folder = pairs_of(bundle)[0]
    assert {Path(folder) / name for name in ("warped.nii.gz", "metrics.json")} <= names
    assert names == {path.relative_to(results[1]) for path in results[1].glob("*/*")}
    for name in ("warped.nii.gz", "forward_field.nii.gz", "inverse_field.nii.gz"):
        first, second = (read_image(root / folder / name) for root in results)
        np.testing.assert_allclose(second, first, atol=0.02)


@pytest.fixture
def strict_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 in convolutions: the CPU has none."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def rendered_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images on every device: a seed draws other numbers on each."""
    prepare = SynthesizedBatch.__call__

    def prepared(self, batch, device=None, non_blocking=False, **kwargs):
        image, targets, args, kwargs = prepare(self, batch, "cpu")
        return image.to(device), {key: value.to(device) for key, value in targets.items()}, args, kwargs

    monkeypatch.setattr(SynthesizedBatch, "__call__", prepared)


@pytest.fixture
def drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise and the same dropout on every device."""
    randn = torch.randn

    def drawn(*size, device=None, generator=None, **kwargs):
        return randn(*size, device="cpu", generator=generator, **kwargs).to(device)

    def dropout(x, p=0.5, training=True, inplace=False):
        kept = (torch.rand(x.shape) >= p).to(x) if training else 1 - p
        return x * kept / (1 - p)

    monkeypatch.setattr(torch, "randn", drawn)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


def to_device(value, device):
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}
    return [to_device(part, device) for part in value] if isinstance(value, list) else value.to(device)


class TestOnGpu:
    pytestmark = gpu

    def test_a_draw_renders_the_same_pair_on_either_device(self):
        synthesis = SynthesizePair(RandomWarp(0.5, rotation_degrees=5, shift=2), RandomContrast(), strip=0.5)
        maps = [torch.randint(0, 530, (2, 1, 24, 28, 20), generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
        draw = synthesis.draw(2, (24, 28, 20), torch.Generator().manual_seed(2))
        on_cpu, on_gpu = synthesis(*maps, draw), synthesis(*[m.cuda() for m in maps], to_device(draw, "cuda"))
        for role in ("moving", "fixed"):
            differs = on_gpu[f"label_{role}"].cpu() != on_cpu[f"label_{role}"]
            assert differs.float().mean() < 0.001  # a point halfway between two voxels may go to either
            apart = (on_gpu[role].cpu() - on_cpu[role]).abs()
            assert apart.median() < 1e-5
            assert (apart > 1e-3).float().mean() < 0.05

    def test_training_follows_that_on_the_cpu(
        self, bundle, scans, tmp_path, strict_float32, rendered_on_the_cpu, drawn_on_the_cpu
    ):
        check_training_on("cuda", bundle, scans, tmp_path)

    def test_inference_agrees_with_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        train(bundle, scans, tmp_path)
        check_inference_on("cuda", bundle, scans, tmp_path, tmp_path / "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxelmorph_probabilistic", "quicksilver", "metric_learning", "synthmorph"])
class TestComparison:
    """The comparisons themselves, where there is no GPU: draws and optima are shared. One epoch and one pair do."""

    def test_two_trainings_on_the_cpu_are_equal(self, name, scans, tmp_path, rendered_on_the_cpu, drawn_on_the_cpu):
        check_training_on("cpu:0", bundle_named(name), scans, tmp_path, max_epochs=1, num_pairs=4)

    def test_two_inferences_on_the_cpu_are_equal(self, name, scans, tmp_path):
        train(bundle_named(name), scans, tmp_path, max_epochs=1, num_pairs=2)
        check_inference_on("cpu:0", bundle_named(name), scans, tmp_path, tmp_path / "model.pt", **FIRST)


def bundle_named(name: str) -> Path:
    return next(bundle for bundle in BUNDLES if bundle.name == name)
