"""The claims: a network learns the motion of series without being told it, and the search can start from its answer."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY, workflow
from torch import nn

from custom_components.commands.subtract import subtract
from custom_components.data.angiography import angiogram
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import warp
from custom_components.methods.subtraction.correction import correct, subtracted
from custom_components.methods.subtraction.learning import DrawnSeries, SeriesLoss, prepare_series_batch, series_score
from custom_components.methods.subtraction.measures import true_metrics
from custom_components.methods.subtraction.network import MotionNetwork, estimated_motion, network_input
from custom_components.methods.subtraction.objective import SubtractionLoss
from custom_components.weights import load_weights

BUNDLE = REPOSITORY / "bundles" / "subtraction"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def series():
    return angiogram((96, 96), 6, 5)


@pytest.fixture(scope="module")
def logs(series):
    return series.counts.clamp(min=1).log()


class Shift(nn.Module):
    """A network that always gives one velocity, in pixels of half the resolution."""

    def __init__(self, *velocity: float) -> None:
        super().__init__()
        self.velocity = torch.tensor(velocity).view(1, 2, 1, 1)

    def forward(self, image):
        n, _, h, w = image.shape
        return self.velocity.expand(n, 2, -(-h // 2), -(-w // 2))


def test_exposure_and_gain_change_nothing_that_the_network_sees(logs):
    mask = logs[:1].expand_as(logs)
    exposed = logs + torch.linspace(-1, 1, len(logs)).view(-1, 1, 1, 1)
    torch.testing.assert_close(network_input(mask, exposed), network_input(mask, logs), atol=1e-4, rtol=0)
    torch.testing.assert_close(network_input(3 * mask, 3 * logs), network_input(mask, logs), atol=1e-4, rtol=0)


def test_motion_is_in_pixels_of_the_series_whatever_the_network_saw(logs):
    """A velocity of 1 pixel at half the resolution is 2 pixels, or 4 of a series that was shrunk by 2."""
    for coarser in (1, 2):
        ddf = estimated_motion(Shift(1.0, 0.0), logs, logs, coarser)
        assert ddf.shape == (6, 2, 96, 96)
        torch.testing.assert_close(ddf[:, 0], torch.full((6, 96, 96), 2.0 * coarser), rtol=0.05, atol=0)
        assert float(ddf[:, 1].abs().max()) == 0


def test_a_new_network_gives_no_motion(logs):
    assert float(estimated_motion(MotionNetwork(), logs, logs).abs().max()) < 0.01


def test_without_iterations_the_network_s_motion_is_what_moves_the_mask(logs):
    found = correct(logs, (0,), network=Shift(0.5, -0.5), iterations=[])
    torch.testing.assert_close(found.ddf, estimated_motion(Shift(0.5, -0.5), logs, logs))


def test_a_search_begins_where_the_network_ends():
    """A shift by 14 pixels, which a search on the finest level alone does not find."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 16, 16), (64, 64), mode="bicubic")
    pair = torch.cat([image, image.roll(-14, 2)]) + 0.003 * torch.randn(2, 1, 64, 64)
    alone = correct(pair, (0,), iterations=[10]).ddf[1, 0, 4:44, 12:-12]
    told = correct(pair, (0,), iterations=[10], network=Shift(6.5, 0.0)).ddf[1, 0, 4:44, 12:-12]
    assert float((told - 14).abs().mean()) < 0.3
    assert float((alone - 14).abs().mean()) > 3


@pytest.mark.parametrize("iterations", [[], [1] * 6])
def test_a_search_needs_stages_or_a_network(logs, iterations):
    with pytest.raises(ValueError, match="1 to 5 stages"):
        correct(logs, iterations=iterations)


def test_series_are_drawn_anew_and_those_of_validation_are_not():
    fresh, fixed = DrawnSeries(2, 32, 4), DrawnSeries(2, 32, 4, seed=7)
    torch.manual_seed(0)
    first, second = fresh[0]["image"], fresh[0]["image"]
    assert first.shape == (4, 2, 32, 32)
    assert not torch.equal(first, second)
    assert torch.equal(fixed[1]["image"], DrawnSeries(2, 32, 4, seed=7)[1]["image"])
    assert not torch.equal(fixed[0]["image"], fixed[1]["image"])
    torch.manual_seed(0)
    assert torch.equal(fresh[0]["image"], first)
    assert len(list(fixed)) == 2


@pytest.mark.parametrize("wrong", [{"count": 0}, {"pixels": 8}, {"frames": 2}])
def test_series_that_cannot_be_drawn_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DrawnSeries(**{"count": 1, **wrong})


def batch_of(*items):
    return prepare_series_batch({"image": torch.stack([item["image"] for item in items])}, "cpu")


def test_the_loss_of_two_series_is_the_mean_of_theirs():
    """Their last and first frames are no neighbours in time."""
    items = list(DrawnSeries(2, 32, 4, seed=3))
    field = 0.5 * torch.randn(8, 2, 32, 32)

    def loss(items, ddf):
        image, targets, _, _ = batch_of(*items)
        pred = {"ddf": ddf, "warped": warp(image[:, :1], ddf)}
        value = SeriesLoss()(pred, targets)
        assert set(pred["terms"]) == {"similarity", "smoothness", "temporal"}
        return value

    alone = [loss([item], part) for item, part in zip(items, field.chunk(2), strict=True)]
    torch.testing.assert_close(loss(items, field), torch.stack(alone).mean())


def test_the_score_is_highest_for_the_true_motion(series, logs):
    targets = {"moving": network_input(logs[:1].expand_as(logs), logs)[None, :, :1]}
    targets["fixed"] = network_input(logs[:1].expand_as(logs), logs)[None, :, 1:]
    scores = [
        float(series_score({"label": targets, "pred": {"ddf": ddf}}))
        for ddf in (series.ddf, 0.5 * series.ddf, torch.zeros_like(series.ddf))
    ]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[2] < 0.5 < 0.6 < scores[0] <= 1.1


def test_a_network_learns_the_motion_of_one_series_without_being_told(series, logs):
    torch.manual_seed(0)
    network = MotionNetwork()
    optimizer, loss = torch.optim.Adam(network.parameters(), 2e-3), SubtractionLoss(robust="edges", fresh=True)
    image = network_input(logs[:1].expand_as(logs), logs)
    for _ in range(60):
        ddf = StationaryVelocity()(network(image), (96, 96))["ddf"]
        optimizer.zero_grad()
        loss({"ddf": ddf, "warped": warp(image[:, :1], ddf)}, {"fixed": image[:, 1:]}).backward()
        optimizer.step()
    found = subtracted(logs, logs[:1], estimated_motion(network, logs[:1].expand_as(logs), logs), (0,))
    metrics = true_metrics(found, series.vessels, series.noise, series.ddf)
    assert metrics["residual_after"] < 0.6 * metrics["residual_before"]


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").is_file(), reason="there are no weights")
class TestShipped:
    @pytest.fixture(scope="class")
    def network(self):
        network = MotionNetwork().eval()
        load_weights(network, BUNDLE / "models" / "model.pt", "motion")
        return network

    @pytest.mark.parametrize("motion", [1.0, 2.0])
    def test_its_subtraction_is_clearly_better_than_the_raw_one(self, network, motion):
        drawn = angiogram((192, 192), 8, 77, motion=motion)
        logs, means = drawn.counts.clamp(min=1).log(), {}
        for name, iterations in (("alone", []), ("refined", [10])):
            found = correct(logs, network=network, iterations=iterations)
            means[name] = true_metrics(found, drawn.vessels, drawn.noise, drawn.ddf)
        assert means["alone"]["residual_after"] < 0.6 * means["alone"]["residual_before"]
        assert means["alone"]["preservation_after"] > 0.8
        assert means["refined"]["residual_after"] < means["alone"]["residual_after"]

    def test_the_bundle_writes_what_the_command_writes(self, tmp_path):
        counts = angiogram((64, 48), 5, 1).counts[:, 0].permute(2, 1, 0).contiguous().numpy().astype(np.int32)
        path = str(tmp_path / "series.nii.gz")
        nib.save(nib.Nifti1Image(counts, np.eye(4)), path)
        by_command = subtract(path, str(tmp_path / "out"), network=True, optimize=3)
        settings = {"output_dir": str(tmp_path / "eval"), "optimize": 3, "dataset#data": [{"image": path}]}
        job = workflow(BUNDLE, "infer", [BUNDLE / "configs" / "inference.json"], settings)
        job.initialize()
        assert job.check_properties() == []
        job.run()
        own, other = tmp_path / "out", tmp_path / "eval" / "series"
        assert {path.name for path in own.iterdir()} == {path.name for path in other.iterdir()}
        images = (nib.load(folder / "subtraction.nii.gz").get_fdata() for folder in (own, other))
        np.testing.assert_allclose(*images, atol=1e-4)
        assert "series" in (tmp_path / "eval" / "series.csv").read_text()
        assert json.loads((own / "metrics.json").read_text())["frames"] == 5
        assert by_command.files["subtraction"].is_file()


def test_what_the_command_cannot_do_is_said(tmp_path):
    for wrong, words in (({"weights": "a.pt"}, "--network"), ({"network": True, "weights": "absent.pt"}, "absent.pt")):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            subtract(str(tmp_path / "no.nii.gz"), str(tmp_path / "out"), **wrong)
    with pytest.raises(ValueError, match="optimize"):
        subtract(str(tmp_path / "no.nii.gz"), str(tmp_path / "out"), network=True, optimize=-1)
