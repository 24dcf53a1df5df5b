"""Weights of a metric that are learned, optimised or given: networks, loss, inferers, stored momenta, report."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from torch import nn

from custom_components.data.batches import prepare_pair_batch
from custom_components.data.phantoms import phantom_pair, write_phantom_scans
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.fields import resize_map, warp
from custom_components.inference.multistep import MultiStepInferer
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.data import MomentumStore, SteadyPairs, prepare_labelled_batch, prepare_named_batch
from custom_components.methods.rdmm.inference import MetricInferer, RegionInferer
from custom_components.methods.rdmm.metric import RegionSpecificMomentum
from custom_components.methods.rdmm.networks import MetricNetwork, RegionMomentumNetwork, RegularizerNetwork
from custom_components.methods.rdmm.objective import (
    InputRangePenalty,
    OMTPenalty,
    RangePenalty,
    RegionLoss,
    WeightTotalVariation,
    omt_weight,
    range_weight,
)
from custom_components.methods.rdmm.reporting import ReportSigmad
from custom_components.methods.rdmm.weights import label_weights
from custom_components.networks.momentum_net import MomentumNetwork
from custom_components.networks.zero import ZeroField
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import ReportPaird
from custom_components.transforms.save import SavePaird

KERNEL = MultiGaussianKernel((2.0, 4.0, 8.0), (0.2, 0.3, 0.5))
SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def metric(**options):
    return RegionSpecificMomentum(KERNEL, 1.0, 3, weight_sigma=3.0, **options)


def pair_loss(weight=0.001):
    return RegistrationLoss(MSE(), MeanEnergy(), weight, regularized="energy")


def region_loss(**options):
    return RegionLoss(
        pair_loss(),
        omt=OMTPenalty(KERNEL.sigmas, squared=True),
        range=RangePenalty(KERNEL.weights, squared=True),
        **options,
    )


def optimizer(deformation, iterations=4, levels=(2, 1), loss=None):
    return PairwiseOptimizer(
        deformation, loss or pair_loss(), levels=levels, iterations=[iterations] * len(levels), method="lbfgs"
    )


def pair(size, batch=1):
    return phantom_pair(size, batch=batch)["image"]


def trained_looking(network, seed=0):
    """A network whose slope is not small, so that its answer differs from place to place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("norm.weight", "slope")):
                parameter.fill_(0.1)
    return network


# Networks


def test_networks_of_the_papers_have_their_sizes():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(RegularizerNetwork(3, 5)) == 450_815
    assert count(MetricNetwork(2, 4, sees_momentum=False)) == 2_548
    assert count(MetricNetwork(3, 4, sees_momentum=False)) == 12_548


@both
def test_regularizer_gives_small_weights_at_the_start_on_half_the_grid(size):
    network, image = RegularizerNetwork(len(size), 3), torch.rand(2, 2, *size)
    x = network(image)
    assert x.shape == (2, 3, *[-(-n // 2) for n in size])
    assert 0.01 < float(x.std()) < 0.04
    assert not torch.allclose(x, network(image.flip(1)))
    assert torch.equal(torch.jit.script(network)(image), x)


@both
def test_region_network_gives_momentum_and_weights(size):
    d = len(size)
    parts = MomentumNetwork(d, (4, 4, 4)), RegularizerNetwork(d, 3)
    network, image = RegionMomentumNetwork(*parts).eval(), torch.rand(1, 2, *size)
    expected = torch.cat([part(image) for part in parts], 1)
    assert torch.equal(network(image), expected)
    assert torch.equal(torch.jit.script(network)(image), expected)
    assert metric(quantity="root")(expected, size)["sigma"].shape[2:] == expected.shape[2:]


@both
def test_stages_of_the_metric_network(size):
    d = len(size)
    network = trained_looking(MetricNetwork(d, 3)).eval()
    nn.init.constant_(network.offset, 0.02)
    seen = torch.rand(2, 1 + d, *size)
    network.stage = 0
    assert not network(seen).any()
    network.stage = 1
    assert torch.allclose(network(seen), torch.full((2, 3, *size), 0.2))
    network.stage = 2
    assert float(network(seen).std()) > 0.05
    assert torch.equal(torch.jit.script(network)(seen), network(seen))


def test_a_stage_trains_its_own_part_and_every_part_has_a_gradient():
    network = MetricNetwork(2, 3)
    seen = torch.rand(1, 3, 16, 16)
    for stage, trained in ((0, set()), (1, {"offset"}), (2, {"offset", "slope"})):
        network.stage = stage
        network.zero_grad()
        (network(seen) * torch.rand(1, 3, 16, 16)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        assert all(grad is not None for grad in gradients.values())
        moved = {name for name in ("offset", "slope") if gradients[name].any()}
        assert moved == trained


def test_a_network_may_be_blind_to_the_momentum():
    seen = torch.rand(1, 3, 12, 13)
    other = torch.cat([seen[:, :1], torch.rand(1, 2, 12, 13)], 1)
    blind, seeing = (trained_looking(MetricNetwork(2, 3, sees_momentum=s)).eval() for s in (False, True))
    assert torch.equal(blind(seen), blind(other))
    assert not torch.allclose(seeing(seen), seeing(other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RegularizerNetwork(4), "spatial_dims 2 or 3"),
        (lambda: RegularizerNetwork(2)(torch.rand(1, 3, 16, 16)), "a pair of 2-D images"),
        (lambda: MetricNetwork(3, 1), "at least 2 weights"),
        (lambda: MetricNetwork(2)(torch.rand(1, 2, 16, 16)), "an image and a momentum, 3 channels"),
    ],
)
def test_wrong_arguments_of_networks_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Loss


def test_the_loss_is_the_sum_of_its_terms_by_the_schedule():
    size = (24, 26)
    image = pair(size)
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))
    pred = metric()(0.1 * torch.randn(1, 5, 12, 13), size)
    pred["warped"] = warp(batch["moving"], pred["ddf"])
    loss = region_loss(omt_weight=2.0, range_weight=3.0)
    base = float(pair_loss()(dict(pred), batch))
    for epoch in (0, 15, 60):
        loss.epoch = epoch
        omt = 2 * omt_weight(epoch) * float(loss.omt(pred["weights"]))
        expected = base + omt + 3 * range_weight(epoch) * float(loss.range(pred["weights"]))
        assert float(loss(pred, batch)) == pytest.approx(expected, rel=1e-5)
        assert pred["terms"]["omt"] == pytest.approx(omt)
    loss.rate = None
    assert float(loss.terms(pred, batch)["omt"]) == pytest.approx(2 * float(loss.omt(pred["weights"])))


def test_the_loss_of_metric_learning_has_its_terms():
    size = (24, 26)
    image = pair(size)
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))
    pred = metric(stationary=True, mapping="linear")(torch.randn(1, 5, 12, 13), size)
    pred["warped"] = warp(batch["moving"], pred["ddf"])
    variation, cut = WeightTotalVariation(spacing=2.0), InputRangePenalty(KERNEL.weights)
    loss = RegionLoss(pair_loss(), variation=variation, input_range=cut, variation_weight=0.5, input_range_weight=0.2)
    loss(pred, batch)
    assert float(pred["terms"]["variation"]) == pytest.approx(
        0.5 * float(variation(pred["pre_weights"], batch["moving"], pred["grid_spacing"][0].tolist()))
    )
    assert float(pred["terms"]["input_range"]) == pytest.approx(0.2 * float(cut(pred["raw_weights"])))
    given = {key: value for key, value in pred.items() if key != "raw_weights"}
    assert "input_range" not in loss.terms(given, batch)
    assert "omt" not in pred["terms"]


# Optimisation


class Recording(RegionLoss):
    """Remembers the epoch, the schedule and the value of each call."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.epochs, self.schedules, self.values = [], [], []

    def forward(self, pred, batch):
        self.epochs.append(self.epoch)
        self.schedules.append(self.schedule)
        self.values.append(super().forward(pred, batch))
        return self.values[-1]


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_the_schedule_follows_the_iterations_of_an_optimisation(method):
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), range=RangePenalty(KERNEL.weights))
    PairwiseOptimizer(metric(), loss, levels=[2, 1], iterations=[4, 6], method=method)(moving, fixed)
    assert sorted(set(loss.epochs)) == [0, 1, 2, 3, 4]
    assert loss.epochs == sorted(loss.epochs)


@pytest.mark.parametrize("rate", [0.2, None])
def test_a_loss_that_rises_by_its_schedule_does_not_end_a_level(rate):
    moving, fixed = pair((20, 22)).chunk(2, 1)
    omt = OMTPenalty(KERNEL.sigmas, squared=True)
    loss = Recording(pair_loss(), omt=omt, omt_weight=5.0, static=4, rate=rate)
    PairwiseOptimizer(metric(), loss, levels=[1], iterations=[24], tolerance=1e-3)(moving, fixed)
    if rate is None:
        assert set(loss.epochs) == {0}
    else:
        assert max(loss.epochs) == 11
        assert float(loss.values[-1]) > float(loss.values[0])


def test_a_schedule_that_is_over_lets_a_level_end():
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), omt=OMTPenalty(KERNEL.sigmas, squared=True), static=0, rate=0.2)
    PairwiseOptimizer(metric(), loss, levels=[1], iterations=[60], tolerance=0.5)(moving, fixed)
    assert 10 <= max(loss.epochs) * 2 < 40


def test_given_parameters_are_refined_at_the_end_of_the_schedule():
    moving, fixed = pair((20, 22)).chunk(2, 1)
    loss = Recording(pair_loss(), omt=OMTPenalty(KERNEL.sigmas, squared=True), static=10, rate=10.0)
    optimizer = PairwiseOptimizer(metric(), loss, levels=[2, 1], iterations=[2, 2])
    start = optimizer(moving, fixed)
    assert {falling for falling, _ in loss.schedules} == {1.0}
    loss.schedules.clear()
    optimizer(moving, fixed, start)
    assert [pytest.approx(pair) for pair in set(loss.schedules)] == [(0.1, 0.9)]


def test_the_total_variation_of_a_map_is_the_same_on_other_grids():
    size, spacing = (64, 48), (1.0, 1.5)
    deformation = RegionSpecificMomentum(KERNEL, spacing, weight_sigma=2.0, mapping="linear", stationary=True)
    loss = RegionLoss(pair_loss(), variation=WeightTotalVariation(spacing=2.0), rate=None)
    n, found = len(KERNEL.sigmas), []
    ramp = torch.linspace(-0.1, 0.1, 32).view(1, 1, -1, 1).expand(1, n, 32, 24) * torch.arange(n).view(1, n, 1, 1)
    for factor in (1, 2, 4):
        coarse = tuple(k // factor for k in size)
        level = deformation.on_grid(size, coarse)
        small = level.parameter_size(coarse)
        x = torch.cat([torch.zeros(1, 2, *small), resize_map(ramp, small)], 1)
        pred = {**level(x, coarse), "warped": torch.zeros(1, 1, *coarse)}
        images = {key: torch.zeros(1, 1, *coarse) for key in ("moving", "fixed")}
        found.append(float(loss.terms(pred, images)["variation"]))
    assert found == pytest.approx([found[0]] * 3, rel=0.15)


@both
def test_channels_that_a_start_lacks_begin_at_zero(size):
    moving, fixed = pair(size).chunk(2, 1)
    start = 0.1 * torch.randn(1, len(size), *[-(-n // 2) for n in size])
    search = optimizer(metric(), loss=region_loss())
    found = search(moving, fixed, start)
    padded = torch.cat([start, torch.zeros_like(start[:, :1]).expand(-1, 3, *start.shape[2:])], 1)
    assert found.shape == padded.shape
    assert torch.equal(found, search(moving, fixed, padded))


def test_a_pair_can_have_a_deformation_of_its_own():
    moving, fixed = pair((24, 26)).chunk(2, 1)
    given = metric().given(torch.rand(1, 3, 5, 5) + 0.1)
    own = optimizer(given)(moving, fixed)
    assert torch.equal(optimizer(metric())(moving, fixed, deformation=given), own)


def test_the_refinement_of_a_single_step_starts_from_the_networks_answer():
    size = (32, 32)
    image = pair(size)
    deformation = VectorMomentum(KERNEL, 1.0, 3)
    network = MomentumNetwork(2, (4, 4, 4), head_std=0.01)
    refine = optimizer(deformation, iterations=2)
    single = MultiStepInferer(deformation, refinement=refine)(image, network)
    expected = RegistrationInferer(deformation, refinement=refine)(image, network)
    assert len(single["steps"]) == 1
    assert torch.equal(single["ddf"], expected["ddf"])
    assert len(MultiStepInferer(deformation, num_steps=2, refinement=refine)(image, network)["steps"]) == 3


def test_the_metric_of_several_steps_is_that_of_the_first():
    size = (32, 32)
    network = RegionMomentumNetwork(MomentumNetwork(2, (4, 4, 4), head_std=0.01), RegularizerNetwork(2, 3))
    pred = MultiStepInferer(metric(quantity="root"), num_steps=2)(pair(size), trained_looking(network))
    assert torch.equal(pred["sigma"], pred["steps"][0]["sigma"])
    assert not torch.equal(pred["sigma"], pred["steps"][1]["sigma"])


# Pre-defined regulariser


@both
def test_the_metric_is_that_of_the_moving_images_regions(size):
    image = pair(size)
    labels = (image[:, :1] > image[:, :1].mean()).long()
    regions, elsewhere = {"1": [0.5, 0.5, 0.0]}, [0.0, 0.0, 1.0]
    deformation = metric()
    inferer = RegionInferer(
        deformation, regions=regions, elsewhere=elsewhere, sigma=1.0, refinement=optimizer(deformation), inverse=True
    )
    pred = inferer(image, ZeroField(len(size)), labels=labels)
    weights = label_weights(labels, {1: regions["1"]}, elsewhere, sigma=1.0)
    expected = optimizer(deformation.given(weights))(*image.chunk(2, 1))
    assert torch.allclose(pred["ddf"], deformation.given(weights)(expected, size)["ddf"], atol=1e-6)
    assert pred["energy"] > 0
    assert "raw_weights" not in pred
    inside = resize_map(labels.float(), pred["sigma"].shape[2:]) > 0.9
    assert float(pred["sigma"][inside].mean()) < float(pred["sigma"][~inside].mean())


def test_a_pre_defined_metric_needs_labels():
    inferer = RegionInferer(metric(), regions={1: [1, 0, 0]}, elsewhere=[0, 0, 1])
    batch = {"image": pair((16, 16)), "moving": torch.zeros(1, 1, 16, 16), "fixed": torch.zeros(1, 1, 16, 16)}
    image, _, _, options = prepare_labelled_batch(batch)
    with pytest.raises(ValueError, match="label_moving"):
        inferer(image, ZeroField(2), **options)
    labels = torch.ones(1, 1, 16, 16, dtype=torch.int16)
    assert torch.equal(prepare_labelled_batch({**batch, "label_moving": labels})[3]["labels"], labels)


# Metric learning


def inferer(store=None, visits=3):
    deformation = metric(stationary=True, mapping="linear")
    revisit = optimizer(deformation, visits, levels=(1,)) if store is not None else None
    return MetricInferer(deformation, optimizer(deformation), store=store, revisit=revisit)


@both
def test_momenta_are_optimised_in_the_networks_metric(size):
    image = pair(size)
    network = trained_looking(MetricNetwork(len(size), 3)).eval()
    with torch.no_grad():
        pred = inferer()(image, network)
    x = network(torch.cat([resize_map(image[:, :1], pred["momentum"].shape[2:]), pred["momentum"]], 1))
    torch.testing.assert_close(pred["raw_weights"], x.detach(), rtol=1e-4, atol=1e-5)
    moving, fixed = image.chunk(2, 1)
    assert float(MSE()(pred["warped"], fixed)) < 0.8 * float(MSE()(moving, fixed))


def test_without_a_network_the_weights_are_the_kernels_own():
    size = (24, 26)
    image = pair(size)
    network = MetricNetwork(2, 3)
    network.stage = 0
    with torch.no_grad():
        base, none = inferer()(image, network), inferer()(image, ZeroField(2))
    torch.testing.assert_close(none["ddf"], base["ddf"], rtol=1e-3, atol=1e-3)
    shares = none["weights"].mean((0, 2, 3))
    torch.testing.assert_close(shares, torch.tensor(KERNEL.weights))


def test_the_network_is_frozen_while_momenta_are_optimised_and_then_has_a_gradient(tmp_path):
    size = (24, 26)
    image = pair(size)
    network = MetricNetwork(2, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    register = inferer(MomentumStore(tmp_path))
    pred = register(image, network, pairs=["a"])
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    # The call that has the gradient is the only one in training mode: one batch, counted once.
    counts = [value - before[name] for name, value in network.state_dict().items() if "num_batches" in name]
    assert [int(count) for count in counts] == [1, 1]
    pred["energy"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_second_visit_goes_on_from_the_first(tmp_path):
    size = (24, 26)
    image = pair(size, batch=2)
    network, store = MetricNetwork(2, 3).eval(), MomentumStore(tmp_path)
    register = inferer(store)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            pred = register(image, network, pairs=["a", "b"])
        losses.append(float(MSE()(pred["warped"], image[:, 1:])) + 0.001 * float(pred["energy"].mean()))
        torch.testing.assert_close(store.load(["a", "b"]), pred["momentum"])
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < losses[0]


def test_stored_momenta_belong_to_their_pair_and_settings(tmp_path):
    store = MomentumStore(tmp_path / "new", {"kernel": KERNEL})
    assert store.load(["a"]) is None
    momenta = torch.randn(2, 2, 4, 5)
    store.save(["a", "b"], momenta)
    assert torch.equal(store.load(["b", "a"]), momenta.flip(0))
    assert store.load(["a", "c"]) is None
    assert store.load([]) is None
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.pt", "b.pt"}
    with pytest.raises(ValueError, match=r"a\.pt: a momentum made with .* take another folder"):
        MomentumStore(tmp_path / "new", {"kernel": "another"}).load(["a"])
    store.clear()
    assert store.load(["a"]) is None
    MomentumStore(tmp_path / "nowhere").clear()


def test_a_store_needs_a_second_optimiser(tmp_path):
    with pytest.raises(ValueError, match="second visit"):
        MetricInferer(metric(stationary=True), optimizer(metric()), store=MomentumStore(tmp_path))


class Items:
    """Two pairs of images of the same name in two folders."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        image = torch.full((2, 8, 8), float(i))
        paths = {"moving_path": f"/data/{i}/scan.nii.gz", "fixed_path": "/data/9/scan.nii.gz"}
        return {"image": image, "moving": image[:1], "fixed": image[1:], **paths}


def noisy(batch, device=None, **options):
    image, targets, args, more = prepare_pair_batch(batch, device, **options)
    return image + torch.rand(image.shape), targets, args, more


def test_pairs_are_the_same_at_each_visit_and_have_names_of_their_own():
    steady = SteadyPairs(Items(), noisy)
    first, again = [steady[i] for i in range(2)], [steady[i] for i in range(2)]
    assert [item["pair"][:-9] for item in first] == ["00000_scan__scan", "00001_scan__scan"]
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["image"], two["image"])
    assert not torch.equal(first[1]["image"] - 1, first[0]["image"])
    image, targets, _, options = prepare_named_batch(list_data_collate(first))
    assert options == {"pairs": [item["pair"] for item in first]}
    assert image.shape == (2, 2, 8, 8)
    assert set(targets) == {"moving", "fixed"}
    with pytest.raises(IndexError):
        steady[2]


# Report


@pytest.mark.parametrize("size", [(26, 24), (26, 24, 18)], ids=["2-D", "3-D"])
def test_the_equivalent_deviation_is_written_in_millimetres(size, tmp_path):
    write_phantom_scans(tmp_path, 2, size, num_validation=0, spacing_mm=(1.5, 1.2, 2.0)[: len(size)])
    paths = {key: str(tmp_path / "images" / f"phantom_0{i}.nii.gz") for i, key in enumerate(("moving", "fixed"))}
    loaded = LoadPaird(spacing=1.5)(paths)
    grid = loaded["fixed"].shape[1:]
    half = [-(-n // 2) for n in grid]
    sigma = torch.linspace(2, 8, half[0]).view(1, -1, *[1] * (len(half) - 1)).expand(1, *half)
    pred = {"ddf": torch.zeros(len(grid), *grid), "warped": loaded["moving"], "seconds": torch.tensor(0.1)}
    saved = SavePaird(str(tmp_path / "out"), ("warped",))({**loaded, "pred": {**pred, "sigma": sigma}})
    result = ReportSigmad()(ReportPaird()(saved))
    folder = Path(result["output_dir"])
    written = nib.load(folder / "sigma.nii.gz")
    assert written.shape[: len(grid)] == tuple(grid)
    values = np.asarray(written.dataobj).squeeze()
    expected = np.linspace(2, 8, grid[0], dtype=np.float32)
    assert np.abs(values[:, 3, ...].reshape(grid[0], -1) - expected[:, None]).max() < 0.2
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 2 < metrics["sigma_mm"] < 8
    assert metrics["sigma_sd_mm"] > 0
    assert (folder / "sigma.png").stat().st_size > 1000
    assert {"sigma_gz", "sigma_png"} <= set(result["output_files"])


def test_nothing_is_drawn_or_written_where_the_pair_has_none(tmp_path):
    write_phantom_scans(tmp_path, 2, (26, 24), num_validation=0)
    paths = {key: str(tmp_path / "images" / f"phantom_0{i}.nii.gz") for i, key in enumerate(("moving", "fixed"))}
    loaded = LoadPaird(spacing=1.0)(paths)
    grid = loaded["fixed"].shape[1:]
    pred = {"ddf": torch.zeros(2, *grid), "warped": loaded["moving"], "sigma": torch.full((1, 5, 5), 3.0)}
    saved = SavePaird(str(tmp_path / "out"), ("warped_label",))({**loaded, "pred": pred})
    result = ReportSigmad()(ReportPaird(picture=False)(saved))
    assert not list(Path(result["output_dir"]).glob("sigma*"))
    assert result["metrics"]["sigma_mm"] == pytest.approx(3.0)


# The deformation of a network's weights


@both
def test_predicted_weights_are_those_of_the_parameters(size):
    half = [-(-n // 2) for n in size]
    momentum, x = 0.3 * torch.randn(2, len(size), *half), torch.randn(2, 3, *half)
    deformation = metric(stationary=True, mapping="linear")
    predicted = deformation.predicted_by(lambda parameters: x)
    assert predicted.parameter_channels(len(size)) == len(size)
    one, two = predicted(momentum, size), deformation(torch.cat([momentum, x], 1), size)
    for key in ("ddf", "weights", "sigma", "raw_weights"):
        assert torch.equal(one[key], two[key])
    assert deformation.predictor is None
