"""Free-form deformation: B-splines are optimised coarse to fine, and bend as little as they must."""

import pytest
import torch
from inference.cases import both
from inference.test_demons import blob

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.bspline import BSplineDeformation
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.level import Evaluation
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.refiner import refiner
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import MSE


def found(pair, spacing=4, **options):
    deformation = BSplineDeformation(spacing)
    options = {"iterations": 12, "similarity": "lncc", **options}
    points = refiner(deformation, regularized="bending", **options)(pair["moving"], pair["fixed"])
    return deformation(points, pair["fixed"].shape[2:])


@both
def test_a_phantom_is_aligned_without_folds(size):
    pair = phantom_pair([2 * n for n in size], seed=1)
    ddf = found(pair, weight=0.3)["ddf"]
    before = float(mean_dice(pair["label_moving"], pair["label_fixed"]).mean())
    after = float(mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean())
    assert after > before + 0.3 * (1 - before)
    assert jacobian_determinant(ddf).min() > 0


@both
def test_a_blob_three_voxels_on_in_the_moving_image_is_found_there(size):
    middle = [n // 2 for n in size]
    fixed, moving = blob(size, middle), blob(size, [middle[0] + 3, *middle[1:]])
    deformation = BSplineDeformation(8)
    loss = pair_loss(1e-3, regularized="bending", similarity=MSE(0.1))
    optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=20, method="lbfgs")
    here = deformation(optimizer(moving, fixed), size)["ddf"][(0, slice(None), *middle)]
    assert float(here[0]) == pytest.approx(3, abs=0.2)
    assert here[1:].abs().max() < 0.2


def test_a_level_begins_with_the_field_that_the_one_before_has_found(monkeypatch):
    pair, begun, ended = phantom_pair((67, 54), seed=1), [], []
    start, end = Evaluation.__init__, Evaluation.found

    def begins(self, *words, **options):
        start(self, *words, **options)
        begun.append(self.deformation(self.parameters(), self.size))

    def ends(self):
        ended.append(self.deformation(end(self), self.size))
        return end(self)

    monkeypatch.setattr(Evaluation, "__init__", begins)
    monkeypatch.setattr(Evaluation, "found", ends)
    found(pair, iterations=3)
    assert len(begun) == 3
    for coarse, fine in zip(ended, begun[1:], strict=False):
        corners = [field["ddf"][..., 0, 0] for field in (coarse, fine)]
        assert coarse["ddf"].abs().max() > 0.1
        # Voxels of the finer level are about half as long; the bending energy is in voxels of the full image.
        ratio = torch.tensor(
            [(n - 1) / (m - 1) for n, m in zip(fine["ddf"].shape[2:], coarse["ddf"].shape[2:], strict=True)]
        )
        torch.testing.assert_close(corners[1], corners[0] * ratio, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fine["bending"], coarse["bending"], rtol=1e-3, atol=1e-9)


def test_smoothness_makes_fields_bend_less():
    pair = phantom_pair((64, 56), seed=3)
    bends = [float(found(pair, smoothness=s)["bending"]) for s in (0.1, 1.0, 10.0)]
    assert bends[0] > bends[1] > bends[2]


def test_folds_are_pressed_out_as_for_a_momentum():
    loss = refiner(BSplineDeformation(), regularized="bending", similarity="lncc", smoothness=2.0).loss
    assert (loss.weight, loss.regularized, loss.folding_weight) == (2.0, "bending", 30.0)
