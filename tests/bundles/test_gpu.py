"""Bundles on a GPU, which is compared with the CPU. The node may lack itk, matplotlib and TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import infer, pairs_of, read_image, train

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


class TestOnGpu:
    pytestmark = gpu

    def test_training_follows_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        check_training_on("cuda", bundle, scans, tmp_path)

    def test_inference_agrees_with_that_on_the_cpu(self, bundle, scans, tmp_path, strict_float32):
        train(bundle, scans, tmp_path)
        check_inference_on("cuda", bundle, scans, tmp_path, tmp_path / "model.pt")
