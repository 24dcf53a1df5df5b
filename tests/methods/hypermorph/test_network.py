"""HyperMorph's network: at fixed hyper-parameters it is a plain U-Net, sample by sample, and it learns all of them."""

import io
from itertools import pairwise

import pytest
import torch
from ignite.engine import Engine

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import MSE
from custom_components.methods.hypermorph.batches import HyperBatch, HyperSampler
from custom_components.methods.hypermorph.network import HyperConv, HyperMorphUNet
from custom_components.methods.hypermorph.objective import HyperLoss
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.training.checkpoints import ResumableCheckpoint

SIZES = [(13, 18), (9, 12, 7)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
generated_ways = pytest.mark.parametrize("generated", ["channels", "kernels"])
encoders = pytest.mark.parametrize("hyper_encoder", [True, False], ids=["all", "decoder"])
SMALL = {"encoder_channels": (4, 6), "decoder_channels": (6, 4, 4)}
PAPER = {"encoder_channels": (4, 6), "decoder_channels": (6, 5, 4, 3), "strided": True}


def make(spatial_dims, *, influence=5.0, seed=0, **kwargs):
    """A small network whose fields and biases are not tiny; the code changes its kernels by about half."""
    torch.manual_seed(seed)
    network = HyperMorphUNet(spatial_dims, **{**SMALL, "hidden": (8, 8), "flow_std": 0.1, **kwargs})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, HyperConv):
                module.project.weight.mul_(influence)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(std=0.1)
    return network


def pair(size, batch=1, seed=1):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def differs(a, b):
    """The claim is not empty: these fields have nothing to do with each other."""
    return float((a - b).norm()) > 0.05 * float(a.norm())


def count(network):
    return sum(p.numel() for p in network.parameters())


@both
@generated_ways
@encoders
@pytest.mark.parametrize("unet", [SMALL, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize("half_resolution", [False, True])
@torch.no_grad()
def test_at_fixed_hyper_parameters_it_is_a_plain_network(size, generated, hyper_encoder, unet, half_resolution):
    unet = {**unet, "half_resolution": half_resolution}
    network = make(len(size), generated=generated, hyper_encoder=hyper_encoder, num_hyper=2, **unet)
    plain, fields = VoxelMorphUNet(len(size), **unet), []
    for hyper in ([0.0, 1.0], [0.7, 0.2]):
        plain.load_state_dict(network.plain_weights(hyper))
        fields.append(network(pair(size, 2), torch.tensor([hyper])))
        assert fields[-1].shape == (2, len(size), *[(n + 1) // 2 if half_resolution else n for n in size])
        torch.testing.assert_close(fields[-1], plain(pair(size, 2)), rtol=0, atol=1e-5)
    assert differs(*fields)


@both
@generated_ways
@encoders
@pytest.mark.parametrize("unet", [SMALL, PAPER], ids=["default", "paper"])
@torch.no_grad()
def test_codes_and_images_are_matched_sample_by_sample(size, generated, hyper_encoder, unet):
    network = make(len(size), generated=generated, hyper_encoder=hyper_encoder, **unet)
    image, hyper = pair(size, 3), torch.tensor([[0.0], [0.4], [1.0]])

    def single(i, k):
        return network(image[i : i + 1], hyper[k : k + 1])

    each_its_own = network(image, hyper)
    torch.testing.assert_close(each_its_own, torch.cat([single(i, i) for i in range(3)]), rtol=0, atol=1e-5)
    one_image = network(image[:1], hyper)
    torch.testing.assert_close(one_image, torch.cat([single(0, k) for k in range(3)]), rtol=0, atol=1e-5)
    one_code = network(image, hyper[1:2])
    torch.testing.assert_close(one_code, torch.cat([single(i, 1) for i in range(3)]), rtol=0, atol=1e-5)
    assert differs(one_image[0], one_image[2])


@encoders
@pytest.mark.parametrize("unet", [SMALL, PAPER], ids=["default", "paper"])
def test_every_convolution_depends_on_the_code_but_those_of_an_ordinary_encoder(unet, hyper_encoder):
    plain = {name for name, module in VoxelMorphUNet(2, **unet).named_modules() if isinstance(module, torch.nn.Conv2d)}
    network = make(2, hyper_encoder=hyper_encoder, **unet)
    hyper = {name for name, module in network.named_modules() if isinstance(module, HyperConv)}
    assert hyper == {name for name in plain if hyper_encoder or not name.startswith("encoder.")}


@torch.no_grad()
def test_without_hyper_parameters_the_default_is_used():
    network, image = make(2, default=0.3, num_hyper=2), pair(SIZES[0], 2)
    torch.testing.assert_close(network(image), network(image, torch.tensor([[0.3, 0.3]])), rtol=0, atol=0)
    assert differs(network(image), network(image, torch.tensor([[0.9, 0.3]])))
    assert differs(network(image), network(image, torch.tensor([[0.3, 0.9]])))


@both
@generated_ways
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_groups_and_a_loop_convolve_alike(size, generated, stride, batch):
    torch.manual_seed(0)
    convolution = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(3, 5, 3, stride=stride, padding=1)
    layer = HyperConv(convolution, 4, generated, spread=1.0)
    kernels, biases = layer.generate(torch.rand(3, 4))
    x = torch.rand(batch, 3, *size, requires_grad=True)
    ways = [way(x, kernels, biases) for way in (layer.grouped, layer.one_by_one)]
    assert ways[0].shape == (3, 5, *[-(-n // stride) for n in size])
    torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), (x, kernels, biases), retain_graph=True) for y in ways]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_channels_scale_inputs_and_outputs_and_kernels_change_every_entry():
    torch.manual_seed(0)
    code = torch.rand(2, 4)
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    weight, bias = convolution.weight.detach().clone(), convolution.bias.detach().clone()
    channels, kernels = (HyperConv(convolution, 4, generated) for generated in ("channels", "kernels"))
    inputs, outputs, shift = (code @ channels.project.weight.T).split([3, 5, 5], 1)
    expected = torch.einsum("ko,ki,oixy->koixy", 1 + outputs, 1 + inputs, weight)
    torch.testing.assert_close(channels.generate(code), (expected, bias + shift))
    change, shift = (code @ kernels.project.weight.T).split([weight.numel(), 5], 1)
    torch.testing.assert_close(kernels.generate(code), (weight + change.view(2, *weight.shape), bias + shift))


@pytest.mark.parametrize(
    ("size", "kwargs"),
    [
        (SIZES[0], {"generated": "kernels", "num_hyper": 2, **PAPER}),
        (SIZES[1], {"generated": "channels", "hyper_encoder": False, "half_resolution": True}),
    ],
    ids=["2-D", "3-D"],
)
@torch.no_grad()
def test_scripted_network_gives_the_same_field(size, kwargs):
    network = make(len(size), **kwargs)
    scripted, image = torch.jit.script(network), pair(size, 2)
    for hyper in (None, torch.rand(1, network.num_hyper), torch.rand(2, network.num_hyper)):
        torch.testing.assert_close(scripted(image, hyper), network(image, hyper))
    torch.testing.assert_close(scripted(image), network(image))
    hyper = torch.rand(3, network.num_hyper)
    torch.testing.assert_close(scripted(image[:1], hyper), network(image[:1], hyper))


# Initial weights


@generated_ways
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_at_first_it_is_nearly_one_network_with_the_scale_of_he_whatever_the_hyper_parameters(spatial_dims, generated):
    torch.manual_seed(0)
    network = HyperMorphUNet(spatial_dims, generated=generated)
    low, middle, high = (network.plain_weights([hyper]) for hyper in (0.0, 0.4, 1.0))
    for name in network.plain_weights([0.5]):
        if not name.endswith(".weight"):
            continue
        change = (low[name] - high[name]).norm() / middle[name].norm()
        assert 0.003 < change < 0.2, name  # the spread is 0.1 for each of inputs and outputs, the code's length below 1
        fan_in = middle[name][0].numel()
        std = 1e-5 if name == "flow.weight" else (2 / (1 + 0.2**2) / fan_in) ** 0.5
        for weights in (low, middle, high):
            assert float(weights[name].std()) == pytest.approx(std, rel=0.2), name
    image = pair([32] * spatial_dims)
    fields = network(image, torch.tensor([[0.0], [1.0]]))
    assert 0 < fields.abs().max() < 1e-3
    # The changes of ten layers add up.
    assert 0.03 < float((fields[0] - fields[1]).norm() / fields[0].norm()) < 0.5


@generated_ways
@encoders
def test_gradients_reach_every_parameter_and_the_hyper_parameters(generated, hyper_encoder):
    network = make(2, generated=generated, hyper_encoder=hyper_encoder, num_hyper=2, hidden=(16, 16), **PAPER)
    hyper = torch.tensor([[0.2, 0.9], [0.6, 0.3]], requires_grad=True)
    network(pair(SIZES[0], 2), hyper).square().sum().backward()
    for name, parameter in [*network.named_parameters(), ("hyper", hyper)]:
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert hyper.grad.abs().min() > 0


@both
@torch.no_grad()
def test_gradient_of_the_hyper_parameters_is_the_fields_slope(size):
    network, image = make(len(size), seed=2), pair(size)
    hyper, step = torch.tensor([[0.42]]), 1e-3
    with torch.enable_grad():
        leaf = hyper.clone().requires_grad_()
        slope = torch.autograd.grad(network(image, leaf).square().sum(), leaf)[0]
    ends = [network(image, hyper + sign * step).square().sum() for sign in (1, -1)]
    assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=0.02)


# Weights


@pytest.mark.parametrize("unet", [SMALL, PAPER], ids=["default", "paper"])
@generated_ways
@encoders
def test_a_training_starts_from_the_weights_of_a_plain_network(unet, generated, hyper_encoder, tmp_path):
    torch.manual_seed(0)
    plain = VoxelMorphUNet(2, **unet)
    network = HyperMorphUNet(2, generated=generated, hyper_encoder=hyper_encoder, **unet)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in plain.state_dict().items()}.items() < shapes.items()
    projections = network.decoder[0][0].project.weight.detach().clone()
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    fresh = ["hypernetwork.", "encoder.", "decoder.", "second.", "final.", "flow."]
    ResumableCheckpoint(
        tmp_path / "last.pt", {"network": network}, initial_weights=tmp_path / "model.pt", fresh=fresh
    ).attach(Engine(lambda engine, batch: None))
    assert torch.equal(network.decoder[0][0].project.weight, projections)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, HyperConv):
                module.project.weight.zero_()
        image = pair(SIZES[0], 2)
        torch.testing.assert_close(network(image, torch.rand(2, 1)), plain(image), rtol=1e-5, atol=1e-9)


def test_plain_weights_are_copies():
    network = make(2, hyper_encoder=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for value in network.plain_weights([0.5]).values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("hidden", "expected"), [([128] * 6, 42_308_643), ([64] * 4, 21_289_187), ([32] * 4, 10_805_187)], ids=str
)
def test_parameter_counts_of_whole_kernels_are_those_of_the_paper(hidden, expected):
    assert count(HyperMorphUNet(3, generated="kernels", hidden=hidden)) == expected


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"spatial_dims": 2, "encoder_channels": [32] + [64] * 3, "decoder_channels": [64] * 5 + [32] * 2}],
    ids=["3-D", "2-D, twice the width"],
)
def test_files_of_a_channels_network_are_small(kwargs):
    network, file = HyperMorphUNet(**kwargs), io.BytesIO()
    torch.save(network.state_dict(), file)
    assert len(file.getvalue()) < 10e6
    assert count(network) < 2.5 * count(VoxelMorphUNet(**kwargs))


# Many values for one pair


@both
@encoders
@torch.no_grad()
def test_each_gives_the_fields_of_single_calls(size, hyper_encoder):
    network, image = make(len(size), hyper_encoder=hyper_encoder), pair(size, 2)
    hyper, runs = torch.tensor([[0.0], [0.3], [1.0]]), []
    network.encoder[0].register_forward_hook(lambda *_: runs.append(1))
    fields = list(network.each(image, hyper))
    assert len(runs) == (3 if hyper_encoder else 1)
    assert len(fields) == 3
    for row, field in zip(hyper.split(1), fields, strict=True):
        torch.testing.assert_close(field, network(image, row), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(2, generated="biases"), "expected generated kernels or channels, got 'biases'"),
        (lambda: make(2, hidden=()), "a hidden layer"),
        (lambda: make(2, num_hyper=0), "expected a hyper-parameter"),
        (lambda: make(2, log_variance=-10.0), "log variance is not supported"),
        (lambda: make(2)(pair(SIZES[0]), torch.tensor([0.5])), r"expected 1 hyper-parameters.*\[1\]"),
        (lambda: make(2)(pair(SIZES[0]), torch.tensor([[0.5, 0.5]])), r"expected 1 hyper-parameters.*\[1, 2\]"),
        (lambda: make(2, num_hyper=2).plain_weights([0.5]), r"expected 2 hyper-parameters.*\[1, 1\]"),
    ],
)
def test_the_network_refuses_hyper_parameters_and_settings_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Learning


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs", [{"generated": "channels", "hyper_encoder": False}, {"generated": "kernels"}], ids=["channels", "kernels"]
)
def test_a_short_training_learns_what_lambda_means(kwargs):
    torch.manual_seed(0)
    network = HyperMorphUNet(
        2, encoder_channels=(8, 16), decoder_channels=(16, 16, 8), half_resolution=True, hidden=(32, 32), **kwargs
    )
    batch = phantom_pair((32, 32), seed=1, batch=4, amplitude=3.0)
    inferer, loss = RegistrationInferer(StationaryVelocity(5)), HyperLoss(RegistrationLoss(MSE(), GradientPenalty(), 1))
    draw = HyperBatch(HyperSampler(endpoint_share=0.5))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        image, targets, _, options = draw(batch)
        optimizer.zero_grad()
        loss(inferer(image, network, **options), targets).backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def measure(value):
        pred = inferer(batch["image"], network, hyper=torch.tensor([[value]]))
        velocity = pred["svf"]
        # A translation costs nothing whatever lambda: motion is what remains without it.
        motion = (velocity - velocity.mean((2, 3), keepdim=True)).square().mean().sqrt()
        return float(GradientPenalty()(velocity)), float(MSE()(pred["warped"], batch["fixed"])), float(motion)

    penalties, differences, _ = zip(*[measure(value) for value in (0.0, 0.25, 0.5, 0.75, 1.0)], strict=True)
    assert all(b < 0.8 * a for a, b in pairwise(penalties))
    assert all(b > 1.1 * a for a, b in pairwise(differences))
    assert differences[0] < 0.4 * float(MSE()(batch["moving"], batch["fixed"]))
    assert measure(1.0)[2] < 0.1 * measure(0.1)[2]


def test_as_many_values_as_images_are_wanted():
    with pytest.raises(ValueError, match="expected 3 or 1 hyper-parameters for the images, got 2"):
        HyperMorphUNet(2)(torch.rand(3, 2, 16, 16), torch.rand(2, 1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_field_can_be_made_to_vanish_at_one(spatial_dims):
    torch.manual_seed(0)
    network = HyperMorphUNet(spatial_dims, num_hyper=2, zero_at_one=1, flow_std=0.1, half_resolution=True)
    free = HyperMorphUNet(spatial_dims, num_hyper=2, flow_std=0.1, half_resolution=True)
    free.load_state_dict(network.state_dict())
    image, hyper = torch.rand(3, 2, *[17, 20, 16][:spatial_dims]), torch.tensor([[1.0, 0.0], [0.3, 0.9], [0.0, 1.0]])
    found, raw = network(image, hyper), free(image, hyper)
    assert torch.equal(found[0], raw[0])
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    torch.testing.assert_close(found[1], raw[1] * (1 - 0.9**8))
    torch.testing.assert_close(torch.cat(list(network.each(image[1:2], hyper))), network(image[1:2], hyper))
    torch.testing.assert_close(torch.jit.script(network)(image, hyper), found)
    plain = VoxelMorphUNet(spatial_dims, half_resolution=True)
    plain.load_state_dict(network.plain_weights([0.3, 0.9]))
    torch.testing.assert_close(plain(image[1:2]), found[1:2], rtol=0, atol=1e-5)


def test_what_vanishes_at_one_is_a_hyper_parameter():
    with pytest.raises(ValueError, match="expected zero_at_one below 1, got 1"):
        HyperMorphUNet(2, zero_at_one=1)
