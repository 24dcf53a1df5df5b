"""Bundles on a GPU, which is compared with the CPU. The node may lack itk, matplotlib and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import infer, pairs_of, read_image, train

from custom_components.data.batches import SynthesizedBatch
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.warp import RandomWarp

pytestmark = pytest.mark.filterwarnings("ignore")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def check_training_on(device: str, bundle: Path, scans: Path, folder: Path) -> None:
    losses = {}
    for name in ("cpu", device):
        losses[name] = train(bundle, scans, folder / name, device=torch.device(name))
    assert (folder / device / "model.pt").exists()
    np.testing.assert_allclose(losses[device], losses["cpu"], rtol=0.02)
    assert losses[device][0] == pytest.approx(losses["cpu"][0], rel=1e-3)


def check_inference_on(device: str, bundle: Path, scans: Path, output: Path, weights: Path) -> None:
    results = [
        infer(
            bundle,
            scans,
            output / name,
            weights=str(weights),
            device=torch.device(name),
            **{"report#picture": False},
        )
        for name in ("cpu", device)
    ]
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

    def test_training_follows_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32, rendered_on_the_cpu):
        check_training_on("cuda", bundle, scans, tmp_path)

    def test_inference_agrees_with_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        train(bundle, scans, tmp_path)
        check_inference_on("cuda", bundle, scans, tmp_path, tmp_path / "model.pt")
