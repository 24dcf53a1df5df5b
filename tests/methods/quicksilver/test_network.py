"""The network of Quicksilver: its size, its start, and what travels with its weights."""

import itertools

import pytest
import torch
from methods.quicksilver.cases import KERNEL, OTHER, dimensions, make, momentum_inferer, random_image, strides
from torch import nn

from custom_components.methods.quicksilver.network import QuicksilverNetwork, load_network, load_predictor

skips = pytest.mark.parametrize("skips", [False, True])


def test_the_network_of_the_paper_has_its_size():
    with torch.device("meta"):
        network = QuicksilverNetwork()
    assert sum(p.numel() for p in network.parameters()) == 21_826_344


@skips
@strides
@pytest.mark.parametrize("patch", [7, 11, 15, 19])
@dimensions
def test_the_momentum_has_the_patchs_grid(dims, patch, stride, skips):
    network = make(dims, stride=stride, skips=skips)
    assert network(torch.rand(2, 2, *[patch * stride] * dims)).shape == (2, dims, *[patch] * dims)


@strides
@dimensions
def test_an_untrained_network_hardly_moves(dims, stride):
    torch.manual_seed(0)
    result = QuicksilverNetwork(dims, 4, stride)(torch.rand(2, 2, *[15 * stride] * dims))
    assert 0 < result.abs().max() < 0.1


@skips
@strides
@dimensions
def test_equal_images_begin_without_momentum(dims, stride, skips):
    network, image = make(dims, 4, stride, skips=skips), random_image([15 * stride] * dims, channels=1)
    different = network(random_image([15 * stride] * dims)).abs().max()
    assert different > 0.01
    assert network(image.repeat(1, 2, *[1] * dims)).abs().max() < 1e-6 * different


@strides
@dimensions
def test_both_images_matter_and_not_alike(dims, stride):
    network, image = make(dims, stride=stride), random_image([7 * stride] * dims)
    moving, fixed = image.chunk(2, 1)
    other = random_image([7 * stride] * dims, seed=1, channels=1)
    inputs = [(moving, fixed), (fixed, moving), (other, fixed), (moving, other)]
    results = [network(torch.cat(pair, 1)) for pair in inputs]
    for one, two in itertools.combinations(results, 2):
        assert (one - two).abs().mean() > 1e-3 * one.abs().mean()


@skips
@dimensions
def test_every_voxel_of_a_block_and_every_weight_matters(dims, skips):
    network, image = make(dims, stride=2, skips=skips), random_image([14] * dims).requires_grad_()
    network(image).square().sum().backward()
    assert (image.grad != 0).all()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@dimensions
def test_each_decoder_gives_one_component(dims):
    network, image = make(dims), random_image([7] * dims)
    before = network(image)
    for axis, decoder in enumerate(network.decoders):
        changed = make(dims)
        changed.decoders[axis].load_state_dict({k: torch.zeros_like(v) for k, v in decoder.state_dict().items()})
        difference = (changed(image) - before).flatten(2).abs().amax(2)[0]
        assert [bool(d > 0) for d in difference] == [i == axis for i in range(dims)]


@skips
@strides
@dimensions
def test_the_scripted_network_gives_the_same(dims, stride, skips):
    network, image = make(dims, stride=stride, skips=skips), random_image([7 * stride] * dims, 2)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


@pytest.mark.parametrize(
    "settings", [{"spatial_dims": 1}, {"features": 0}, {"stride": 0}, {"dropout": 1.0}, {"dropout": -0.1}], ids=str
)
def test_wrong_settings_of_the_network_are_named(settings):
    with pytest.raises(ValueError, match="expected spatial_dims 2 or 3"):
        QuicksilverNetwork(**{"features": 2, **settings})


def test_the_description_travels_with_the_weights(tmp_path):
    network = make(dropout=0.25, kernel=KERNEL, quantity="velocity", spacing=(1, 1.5))
    network.corrects = "1234abcd"
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = make(seed=1, quantity="velocity")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert other.description() == network.description()
    expected = {"kernel": str(KERNEL), "quantity": "velocity", "corrects": "1234abcd", "dropout": 0.25}
    assert network.description() == {**expected, "spacing": [1, 1.5]}


def test_weights_for_another_spacing_are_refused():
    network = make()
    for weights in (make(spacing=1.0), make()):
        network.load_state_dict(weights.state_dict())
    assert network.spacing == 1.0
    with pytest.raises(RuntimeError, match=r"spacing of 2\.0, not 1\.0"):
        network.load_state_dict(make(spacing=2.0).state_dict())


def test_samples_do_not_go_with_a_correction():
    with pytest.raises(ValueError, match="leave the correction out"):
        momentum_inferer(correction=make(), samples=2)


@pytest.mark.parametrize(
    ("mine", "theirs", "names"),
    [
        ({"kernel": KERNEL}, {"kernel": OTHER}, [str(KERNEL), str(OTHER)]),
        ({"kernel": KERNEL}, {"kernel": KERNEL, "quantity": "velocity"}, [f"the velocity of {KERNEL}", "not momentum"]),
        ({"quantity": "velocity"}, {"kernel": KERNEL}, [f"the momentum of {KERNEL}", "not velocity"]),
    ],
    ids=["kernel", "velocity", "momentum"],
)
def test_weights_for_another_kernel_or_quantity_are_refused(mine, theirs, names):
    network = make(**mine)
    with pytest.raises(RuntimeError, match="the weights predict") as error:
        network.load_state_dict(make(**theirs).state_dict())
    assert all(name in str(error.value) for name in names)


def test_a_network_without_a_kernel_takes_that_of_the_weights():
    network = make()
    network.load_state_dict(make(kernel=KERNEL, seed=1).state_dict())
    assert network.kernel == str(KERNEL)


@pytest.mark.parametrize(
    ("here", "there", "then"), [(0.0, 0.2, 0.2), (0.2, 0.0, 0.2), (0.3, 0.2, 0.3), (0.0, 0.0, 0.0)]
)
def test_dropout_is_taken_from_the_weights_unless_given(here, there, then):
    image = random_image((7, 7), 2)
    network = make(dropout=here)
    network.load_state_dict(make(dropout=there).state_dict())
    assert network.dropout == then
    assert torch.equal(network.eval()(image), network(image))
    network.train()
    assert torch.equal(network(image), network(image)) == (then == 0)


def test_a_correction_may_start_from_a_prediction_but_not_from_another_correction():
    network = make()
    network.corrects = "1234abcd"
    network.load_state_dict(make(seed=1).state_dict())
    assert network.corrects == "1234abcd"
    other = make(seed=1)
    other.corrects = "abcd1234"
    with pytest.raises(RuntimeError, match="other weights"):
        network.load_state_dict(other.state_dict())


def test_the_digest_is_that_of_the_weights(tmp_path):
    network = make()
    digest = network.digest()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = make(seed=1)
    assert other.digest() != digest
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert other.digest() == digest == make().digest()
    with torch.no_grad():
        other.decoders[1].head.bias += 1e-6
    assert other.digest() != digest


@skips
def test_a_network_is_loaded_from_a_file_whatever_its_features(tmp_path, skips):
    path, image = tmp_path / "model.pt", random_image((14, 14))
    saved = make(2, 3, 2, skips=skips, kernel=KERNEL, dropout=0.1)
    torch.save(saved.state_dict(), path)
    network = make(2, 2, 2, kernel=KERNEL)
    loaded = load_network(network, path)
    assert not loaded.training
    assert loaded.description() == saved.description()
    torch.testing.assert_close(loaded(image), saved(image))
    assert load_network(network, str(path)).digest() == saved.digest()
    with pytest.raises(RuntimeError, match="the weights predict"):
        load_network(make(2, 2, 2, kernel=OTHER), path)


def test_no_path_is_no_network():
    assert load_network(make(), None) is None
    assert load_network(make(), "none") is None
    assert load_network(nn.Identity(), "model.pt") is None


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: these are not the weights of a Quicksilver network"):
        load_network(make(), tmp_path / "other.pt")


def test_a_correction_network_knows_what_it_corrects(tmp_path):
    saved, network = make(kernel=KERNEL), make(kernel=KERNEL, seed=1)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    assert load_predictor(network, tmp_path / "model.pt").digest() == saved.digest() == network.corrects
    assert load_predictor(network, None) is None
    assert network.corrects == ""
