"""Quicksilver: patches, the network, its loss and its training data, and momenta predicted for whole images."""

import itertools
import json

import monai
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from custom_components.data.batches import prepare_pair_batch
from custom_components.data.phantoms import random_velocity
from custom_components.deformations.kernels import HelmholtzKernel, gaussian_kernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.fields import identity_grid, resize_field, warp
from custom_components.methods.quicksilver.dataset import MomentumPatchDataset
from custom_components.methods.quicksilver.inference import PatchInferer, PatchMomentumInferer
from custom_components.methods.quicksilver.network import QuicksilverNetwork, load_network, load_predictor
from custom_components.methods.quicksilver.objective import MomentumLoss
from custom_components.methods.quicksilver.patches import cut, pad_to_patches, patch_starts, predict_in_patches

KERNEL = HelmholtzKernel(9.0, 1.0, power=2)
OTHER = HelmholtzKernel(4.0, 1.0, power=2)
strides = pytest.mark.parametrize("stride", [1, 2])
skips = pytest.mark.parametrize("skips", [False, True])
dimensions = pytest.mark.parametrize("dims", [2, 3], ids=["2-D", "3-D"])


def random_image(size, batch=1, seed=0, channels=2):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


# Patches


@pytest.mark.parametrize("patch", [3, 5, 15])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("size", [(17, 22), (15, 31), (19, 16, 15)], ids=str)
def test_patches_cover_every_voxel_and_end_with_the_grid(size, step, patch):
    count = torch.zeros(1, *size)
    starts = list(patch_starts(size, patch, step))
    assert len(starts) == len(set(starts))
    for start in starts:
        part = cut(count, start, patch)
        assert part.shape == (1, *[patch] * len(size))
        part += 1
    assert count.min() >= 1
    assert starts[0] == (0,) * len(size)
    assert starts[-1] == tuple(n - patch for n in size)


def test_neighbouring_patches_are_a_step_apart():
    assert list(patch_starts((43,), 15, 14)) == [(0,), (14,), (28,)]
    assert list(patch_starts((44,), 15, 14)) == [(0,), (14,), (28,), (29,)]
    assert list(patch_starts((12,), 3, 5)) == [(0,), (5,), (9,)]  # a step beyond the patch leaves gaps
    assert list(patch_starts((15, 15), 15, 14)) == [(0, 0)]


@pytest.mark.parametrize(
    ("size", "patch", "stride", "padded"),
    [
        ((20, 31), 15, 1, (20, 31)),
        ((9, 31), 15, 1, (15, 31)),
        ((9, 31), 15, 2, (30, 32)),
        ((33, 31), 7, 3, (33, 33)),
        ((30, 32), 15, 2, (30, 32)),
        ((5, 20, 7), 3, 2, (6, 20, 8)),
    ],
    ids=str,
)
def test_images_are_padded_to_whole_blocks_and_a_patch(size, patch, stride, padded):
    image = 1 + random_image(size, 2)
    result = pad_to_patches(image, patch, stride)
    assert result.shape[2:] == padded
    inside = (slice(None), slice(None), *[slice(n) for n in size])
    assert torch.equal(result[inside], image)
    assert (result != 0).sum() == image.numel()


def strided(image, stride):
    """Every so many voxels along each axis."""
    return image[(slice(None), slice(None), *[slice(None, None, stride)] * (image.ndim - 2))]


@strides
@pytest.mark.parametrize("step", [14, 5, 3])
@pytest.mark.parametrize("size", [(33, 29), (48, 45), (7, 40), (31, 17, 20)], ids=str)
def test_patches_of_an_image_make_the_image(size, step, stride):
    image = random_image(size, 2)
    result = predict_in_patches(image, lambda x: strided(x, stride), 2, step=step, stride=stride, background=-1.0)
    assert result.shape == (2, 2, *[-(-n // stride) for n in size])
    torch.testing.assert_close(result, strided(image, stride), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_number_of_patches_at_a_time_does_not_matter(batch_size):
    image, sizes = random_image((25, 33), 2), []

    def network(patches):
        sizes.append(len(patches))
        return patches.flatten(1).mean(1).view(-1, 1, 1, 1).expand(-1, 2, 15, 15)

    result = predict_in_patches(image, network, 2, step=6, batch_size=batch_size)
    torch.testing.assert_close(result, predict_in_patches(image, network, 2, step=6))
    assert sizes[0] == min(batch_size, 2 * 3 * 4)
    assert result.std() > 1e-4


@strides
def test_answers_are_averaged_where_patches_overlap(stride):
    """Patch k of the one axis along which there are two answers k."""
    numbers = iter(range(2))
    image = random_image((15 * stride, 20 * stride))

    def network(patches):
        return torch.stack([torch.full((1, 15, 15), float(next(numbers))) for _ in patches])

    row = predict_in_patches(image, network, 1, stride=stride)[0, 0, 7]
    assert row.tolist() == [0.0] * 5 + [0.5] * 10 + [1.0] * 5


@strides
@pytest.mark.parametrize("lit", ["moving", "fixed"])
def test_patches_where_both_images_are_dark_are_left_out(lit, stride):
    image = torch.full((2, 2, 30 * stride, 30 * stride), 0.25)
    image[1, int(lit == "fixed"), 3, -1] = 0.5
    seen = []

    def network(patches):
        seen.append(patches)
        return torch.ones(len(patches), 2, 15, 15)

    result = predict_in_patches(image, network, 2, step=15, stride=stride, background=0.25)
    assert torch.cat(seen).shape == (1, 2, 15 * stride, 15 * stride)
    assert torch.equal(torch.cat(seen)[0], image[1, :, : 15 * stride, 15 * stride :])
    expected = torch.zeros(2, 2, 30, 30)
    expected[1, :, :15, 15:] = 1
    assert torch.equal(result, expected)


def test_the_network_is_not_asked_about_dark_images():
    result = predict_in_patches(torch.zeros(2, 2, 33, 20), lambda patches: pytest.fail("asked"), 2)
    assert torch.equal(result, torch.zeros(2, 2, 33, 20))


# The network


def make(dims=2, features=2, stride=1, seed=0, last=3.0, **options):
    """A network whose answers are not near 0."""
    torch.manual_seed(seed)
    network = QuicksilverNetwork(dims, features, stride, **options).eval()
    for decoder in network.decoders:
        nn.init.normal_(decoder.head.weight, std=last)
    return network


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
        PatchMomentumInferer(vector_momentum(), correction=make(), samples=2)


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


# The loss


def loss_of(loss, pred, true):
    return loss({"prediction": pred}, {"momentum": true})


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("kernel", [None, KERNEL], ids=["plain", "smoothed"])
def test_equal_momenta_have_no_loss(kernel, penalty):
    momentum = torch.randn(2, 2, 15, 15)
    assert loss_of(MomentumLoss(penalty, kernel), momentum, momentum) == 0


@dimensions
def test_without_a_kernel_the_loss_is_the_mean_difference(dims):
    pred, true = torch.randn(2, 3, dims, *[7] * dims)
    torch.testing.assert_close(loss_of(MomentumLoss(), pred, true), (pred - true).abs().mean())
    torch.testing.assert_close(loss_of(MomentumLoss("l2"), pred, true), (pred - true).square().mean())


def test_the_term_is_left_for_the_logs():
    pred = {"prediction": torch.ones(1, 2, 7, 7)}
    MomentumLoss("l2")(pred, {"momentum": torch.zeros(1, 2, 7, 7)})
    assert pred["terms"] == {"l2": 1}


@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("place", [6, 0, 12], ids=["middle", "start", "end"])
def test_a_difference_is_smoothed_as_on_a_large_grid(place, exponent):
    """Also at the patch's border: nothing wraps around."""
    kernel = HelmholtzKernel(1.0, 1.0, 0.5, power=2)
    difference = torch.zeros(1, 2, 15, 15)
    difference[:, :, place : place + 3, place : place + 3] = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    large = kernel.powered(F.pad(difference, (40, 41, 40, 41)), exponent, 0.8)[..., 40:55, 40:55]
    for penalty, expected in (("l1", large.abs().mean()), ("l2", large.square().mean())):
        loss = MomentumLoss(penalty, kernel, 0.8, exponent)
        torch.testing.assert_close(loss_of(loss, difference, torch.zeros_like(difference)), expected, rtol=1e-3, atol=0)


def test_squares_with_half_the_kernel_are_those_of_the_metric():
    kernel, difference = HelmholtzKernel(0.25, 1.0, power=2), torch.zeros(1, 2, 15, 15)
    difference[:, :, 5:10, 5:10] = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    loss = loss_of(MomentumLoss("l2", kernel), difference, torch.zeros_like(difference))
    torch.testing.assert_close(loss, (difference * kernel(difference)).mean(), rtol=1e-3, atol=0)


@dimensions
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_finest_detail_hardly_counts_with_a_kernel(penalty, dims):
    smooth = torch.ones(1, dims, *[15] * dims)
    finest = 1 - 2 * (identity_grid(smooth.shape[2:]).sum(0) % 2) * smooth
    zero = torch.zeros_like(smooth)
    assert loss_of(MomentumLoss(penalty), finest, zero) == loss_of(MomentumLoss(penalty), smooth, zero)
    loss = MomentumLoss(penalty, KERNEL)
    assert loss_of(loss, finest, zero) < 0.1 * loss_of(loss, smooth, zero)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("kernel", [None, OTHER], ids=["plain", "smoothed"])
def test_the_loss_is_differentiable(kernel, penalty):
    """In float32; all differences are positive, so that the absolute value has no kink near."""
    generator = torch.Generator().manual_seed(0)
    pred, true = torch.rand(2, 2, 2, 5, 6, generator=generator, dtype=torch.float64)
    loss = MomentumLoss(penalty, kernel)
    inputs = ((pred + 2).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda p: loss_of(loss, p, true), inputs, eps=0.01, atol=1e-4, rtol=0.01)


def test_an_unknown_penalty_is_named():
    with pytest.raises(ValueError, match="expected penalty l1 or l2, got 'l3'"):
        MomentumLoss("l3")


# The training data

PATCH = 7


def vector_momentum(stride=2, kernel=KERNEL, **options):
    return VectorMomentum(kernel, spacing=1.0, stride=stride, num_steps=2, **options)


class PlaceOptimizer:
    """In place of an optimisation: the momentum is the voxel's place, as the images of `pairs` are."""

    def __init__(self, fails_at=None, **options):
        self.deformation, self.seen, self.calls, self.fails_at = vector_momentum(**options), [], 0, fails_at

    def __call__(self, moving, fixed):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.seen += list(torch.cat([moving, fixed], 1))
        size = self.deformation.parameter_size(fixed.shape[2:])
        return (identity_grid(size) / 64)[None].repeat(len(fixed), 1, 1, 1)


def pairs(number=3, size=(40, 44)):
    """Images that tell the place of a voxel, (index + 1) / 64 along an axis each; the pairs do not differ."""
    image = (identity_grid(size) + 1) / 64
    names = [{"moving_path": f"in/scan{i}.nii.gz", "fixed_path": f"in/scan{i + 1}.mgz"} for i in range(number)]
    return [{"image": image.clone(), "pair": i, **name} for i, name in enumerate(names)]


def patches_of(folder, optimizer=None, items=None, **options):
    settings = {"patch": PATCH, "stride": 2, "num_patches": 20, **options}
    return MomentumPatchDataset(pairs() if items is None else items, optimizer or PlaceOptimizer(), folder, **settings)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = ["00000_scan0__scan1.pt", "00001_scan1__scan2.pt", "00002_scan2__scan3.pt"]


def test_every_pair_is_registered_once(tmp_path):
    first, second = PlaceOptimizer(), PlaceOptimizer()
    patches_of(tmp_path / "new" / "momenta", first)
    assert (first.calls, files_in(tmp_path / "new" / "momenta")) == (3, FILES)
    patches_of(tmp_path / "new" / "momenta", second)
    assert second.calls == 0


def test_the_files_are_plain_and_say_what_they_hold(tmp_path):
    patches_of(tmp_path, settings={"weight": 0.5})
    content = torch.load(tmp_path / FILES[0], weights_only=True)
    assert content.keys() == {"image", "momentum", "description"}
    description = json.loads(content["description"])
    assert description.pop("pair") == ["in/scan0.nii.gz", "in/scan1.mgz"]
    assert description == {"kernel": str(KERNEL), "weight": 0.5}


def test_a_missing_file_alone_is_made_again(tmp_path):
    patches_of(tmp_path)
    (tmp_path / FILES[1]).unlink()
    kept = (tmp_path / FILES[0]).stat().st_mtime_ns
    optimizer = PlaceOptimizer()
    patches_of(tmp_path, optimizer)
    assert (optimizer.calls, files_in(tmp_path)) == (1, FILES)
    assert (tmp_path / FILES[0]).stat().st_mtime_ns == kept


def test_an_interrupted_run_keeps_what_it_made(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        patches_of(tmp_path, PlaceOptimizer(fails_at=2))
    assert files_in(tmp_path) == FILES[:1]
    optimizer = PlaceOptimizer()
    patches_of(tmp_path, optimizer)
    assert (optimizer.calls, files_in(tmp_path)) == (2, FILES)


def test_a_run_that_ends_while_it_writes_leaves_no_half_file(tmp_path, monkeypatch):
    def breaks(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", breaks)
        with pytest.raises(KeyboardInterrupt):
            patches_of(tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    patches_of(tmp_path)
    assert files_in(tmp_path) == FILES


def test_pairs_can_be_registered_together(tmp_path):
    optimizer = PlaceOptimizer()
    together = patches_of(tmp_path / "together", optimizer, batch_size=2)
    assert optimizer.calls == 2
    for one, other in zip(together.examples, patches_of(tmp_path / "alone").examples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    sizes = [(tmp_path / folder / FILES[0]).stat().st_size for folder in ("together", "alone")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({"kernel": OTHER}, {}, [str(OTHER), str(KERNEL)]),
        ({"settings": {"weight": 0.5}}, {"settings": {"weight": 0.25}}, ["weight = 0.5", "0.25"]),
        ({"settings": {"levels": (2, 1)}}, {}, ["levels = [2, 1]", "None"]),
        ({}, {"settings": {"weight": 0.25}}, ["weight = None", "0.25"]),
    ],
    ids=["kernel", "value", "removed", "added"],
)
def test_momenta_made_otherwise_are_refused(tmp_path, before, after, names):
    def patches(kernel=KERNEL, **options):
        return patches_of(tmp_path, PlaceOptimizer(kernel=kernel), **options)

    patches(**before)
    patches(**before)
    with pytest.raises(ValueError, match="take another cache_dir") as error:
        patches(**after)
    assert all(name in str(error.value) for name in [str(tmp_path / FILES[0]), *names])


def test_momenta_of_another_stride_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"momentum of size \(20, 22\) for images of \(40, 44\)"):
        patches_of(tmp_path, stride=1)


def test_an_unknown_quantity_is_named(tmp_path):
    with pytest.raises(ValueError, match="velocity or displacement, got 'speed'"):
        patches_of(tmp_path, quantity="speed")


@pytest.mark.parametrize("size", [(40, 44), (31, 27), (9, 30)], ids=str)
@strides
def test_image_and_momentum_belong_to_the_same_place(tmp_path, stride, size):
    dataset = patches_of(tmp_path, PlaceOptimizer(stride=stride), pairs(2, size), stride=stride)
    assert len(dataset) == 20
    for item in dataset:
        image, momentum = item["image"], item["momentum"]
        assert image.dtype == momentum.dtype == torch.float32
        assert image.shape == (2, *[PATCH * stride] * 2)
        assert momentum.shape == (2, PATCH, PATCH)
        seen = strided(image[None], stride)[0]
        shown = seen.amin(0) > 0  # beyond the image both are 0
        assert torch.equal((64 * seen - 1)[:, shown], 64 * stride * momentum[:, shown])
        assert not momentum[:, ~shown].any()
    with pytest.raises(IndexError, match="item 20 of a dataset of 20 patches"):
        dataset[20]


def places_of(dataset):
    """First voxels of an epoch's patches on the coarse grid, from their momenta."""
    return [tuple((64 * item["momentum"][:, 0, 0]).int().tolist()) for item in dataset]


@pytest.mark.parametrize("voxel", [(0, 0), (9, 8), (19, 19)], ids=str)
@pytest.mark.parametrize("channel", [0, 1], ids=["moving", "fixed"])
def test_patches_come_from_all_places_where_an_image_shows_something(tmp_path, channel, voxel):
    items = pairs(1, (20, 20))
    items[0]["image"].fill_(0.02)
    items[0]["image"][channel, voxel[0], voxel[1]] = 0.5
    dataset = patches_of(tmp_path, items=items, patch=3, num_patches=200, background=0.1)
    ranges = [range(max(0, v // 2 - 2), min(7, v // 2) + 1) for v in voxel]
    assert set(places_of(dataset)) == set(itertools.product(*ranges))


def test_pairs_without_content_are_left_out_and_refused_if_there_is_nothing_else(tmp_path):
    items = pairs(3, (20, 20))
    for i in (0, 2):
        items[i]["image"] *= 0
    dataset = patches_of(tmp_path / "one", items=items)
    assert all(item["image"].any() for item in dataset)
    items[1]["image"] *= 0
    with pytest.raises(ValueError, match=r"none of 3 pairs shows anything above 0\.02"):
        patches_of(tmp_path / "none", items=items)


def test_equal_seeds_give_equal_patches_and_epochs_differ(tmp_path):
    epochs = []
    for seed in (5, 5, 6):
        monai.utils.set_determinism(seed)
        try:
            dataset = patches_of(tmp_path)
            epochs.append([places_of(dataset) for _ in range(2)])
        finally:
            monai.utils.set_determinism(None)
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][0] != epochs[0][1]


def test_random_images_are_the_same_in_every_run_and_others_for_every_pair(tmp_path):
    def prepare(batch, device=None):
        image, *rest = prepare_pair_batch(batch, device)
        return torch.rand_like(image), *rest

    runs = []
    for folder in ("a", "b"):
        torch.manual_seed(len(runs))
        state, optimizer = torch.get_rng_state(), PlaceOptimizer()
        dataset = patches_of(tmp_path / folder, optimizer, prepare=prepare)
        assert torch.equal(torch.get_rng_state(), state)
        for seen, (shown, _) in zip(optimizer.seen, dataset.examples, strict=True):
            assert torch.equal(seen.half(), shown)
        runs.append([image for image, _ in dataset.examples])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])


WHOLE = (2 * PATCH, 2 * PATCH)  # images of one patch, with stride 2


def test_other_quantities_are_those_of_the_deformation(tmp_path):
    deformation = vector_momentum()
    momentum = (identity_grid((PATCH, PATCH)) / 64)[None]
    pred = deformation(momentum, WHOLE)
    expected = {"momentum": momentum, "velocity": pred["velocity"]}
    expected["displacement"] = resize_field(pred["ddf"], (PATCH, PATCH))
    for quantity, field in expected.items():
        item = patches_of(tmp_path, items=pairs(1, WHOLE), quantity=quantity)[0]
        torch.testing.assert_close(item["momentum"], field[0])
    assert (expected["velocity"] - expected["displacement"]).abs().max() > 1e-3


def test_the_network_may_see_another_contrast(tmp_path):
    items, optimizer = pairs(1, WHOLE), PlaceOptimizer()
    items[0] |= {"t2_moving": random_image(WHOLE)[0, :1], "t2_fixed": random_image(WHOLE)[0, 1:]}
    item = patches_of(tmp_path, optimizer, items, inputs=("t2_moving", "t2_fixed"))[0]
    torch.testing.assert_close(item["image"], random_image(WHOLE)[0], rtol=0, atol=1e-3)
    assert torch.equal(optimizer.seen[0], items[0]["image"])


class Local(nn.Module):
    """Momenta from the images' intensities at the same place: patches of it make up the whole."""

    def __init__(self, stride=2, scale=4.0):
        super().__init__()
        self.stride, self.scale = stride, scale

    def forward(self, image):
        moving, fixed = strided(image, self.stride).chunk(2, 1)
        rest = [moving * fixed] * (image.ndim - 3)
        return self.scale * torch.cat([fixed - moving.square(), *rest], 1)


@pytest.mark.parametrize("size", [WHOLE, (13, 14), (9, 11)], ids=["whole", "odd", "smaller than a patch"])
def test_a_correction_is_trained_on_what_the_prediction_lacks(tmp_path, size):
    """And sees what it sees when it is used."""
    inferer = PatchMomentumInferer(vector_momentum(), predictor=Local(), patch=PATCH)
    items = pairs(1, size)
    image = items[0]["image"][None]
    seen, predicted = inferer.before(image)
    assert (seen - image)[:, 1].abs().max() > 0.005
    coarse = tuple(predicted.shape[2:])
    item = patches_of(tmp_path, items=items, inferer=inferer)[0]
    found = item["momentum"][:, : coarse[0], : coarse[1]]
    torch.testing.assert_close(found, identity_grid(coarse) / 64 - predicted[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(item["image"][:, : size[0], : size[1]], seen[0], rtol=0, atol=5e-4)


def test_an_inferer_without_predictor_changes_nothing(tmp_path):
    plain, other = (patches_of(tmp_path, inferer=i) for i in (None, PatchMomentumInferer(vector_momentum())))
    for one, two in zip(plain.examples, other.examples, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# Whole images


def smooth_pair(size, batch=1, seed=0):
    """Textured images above 0."""
    image = gaussian_kernel(1.5)(torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed)))
    return 0.5 + 0.15 * image / image.std()


def momentum_inferer(stride=2, **options):
    return PatchMomentumInferer(vector_momentum(stride), patch=PATCH, step=5, **options)


class Recording(VectorMomentum):
    """Keeps the parameters it is called with."""

    def __call__(self, parameters, size, **kwargs):
        self.calls = [*getattr(self, "calls", []), parameters]
        return super().__call__(parameters, size, **kwargs)


wholes = pytest.mark.parametrize("size", [(20, 26), (17, 25), (14, 16, 18)], ids=["2-D", "odd", "3-D"])


@strides
@wholes
def test_the_deformation_is_that_of_the_momentum(size, stride):
    image, network = smooth_pair(size, 2), Local(stride)
    pred = momentum_inferer(stride)(image, network)
    expected = vector_momentum(stride)(network(image), size)
    for name in ("momentum", "ddf", "velocity", "energy"):
        torch.testing.assert_close(pred[name], expected[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pred["warped"], warp(image[:, :1], pred["ddf"]))
    assert pred["ddf"].abs().max() > 0.3
    assert pred["seconds"].shape == (2,)
    assert "inverse_ddf" not in pred


def test_the_inverse_is_there_when_asked_for():
    image, network = smooth_pair((20, 26)), Local()
    pred = momentum_inferer(inverse=True)(image, network)
    expected = vector_momentum()(network(image), (20, 26), inverse=True)
    torch.testing.assert_close(pred["inverse_ddf"], expected["inverse_ddf"], rtol=1e-4, atol=1e-5)


@wholes
def test_a_correction_is_added_and_sees_the_fixed_image_in_moving_space(size):
    image, network, correction = smooth_pair(size), Local(), Local(scale=-2.0)
    predicted = network(image)
    inverse = vector_momentum()(predicted, size, inverse=True)["inverse_ddf"]
    moving, fixed = image.chunk(2, 1)
    corrected = predicted + correction(torch.cat([moving, warp(fixed, inverse)], 1))
    pred = momentum_inferer(correction=correction)(image, network)
    torch.testing.assert_close(pred["momentum"], corrected, rtol=1e-4, atol=1e-4)
    assert (corrected - predicted - correction(image)).abs().max() > 0.02
    trained = momentum_inferer(predictor=network)(image, correction)
    torch.testing.assert_close(trained["momentum"], pred["momentum"])
    torch.testing.assert_close(trained["ddf"], pred["ddf"])


@torch.no_grad()
def test_a_correction_of_other_weights_is_refused():
    image, network, correction = smooth_pair((14, 14)), make(stride=2), make(stride=2, seed=1)
    correction.corrects = network.digest()
    inferer = momentum_inferer(correction=correction)
    inferer(image, network)
    for other in (make(stride=2, seed=2), nn.DataParallel(make(stride=2, seed=2))):
        with pytest.raises(ValueError, match="belongs to other weights"):
            inferer(image, other)
    correction.corrects = ""
    with pytest.raises(ValueError, match="belongs to other weights"):
        inferer(image, network)


@wholes
def test_a_batch_gives_what_its_pairs_give(size):
    network, image = make(len(size), stride=2), smooth_pair(size, 2)
    image[0, :, : size[0] // 2] = 0  # background patches of one pair only
    inferer = momentum_inferer(batch_size=3)
    with torch.no_grad():
        together = inferer(image, network)
        for i in range(2):
            alone = inferer(image[i : i + 1], network)
            for name in ("momentum", "ddf", "warped"):
                torch.testing.assert_close(together[name][i], alone[name][0], rtol=1e-4, atol=1e-5)
    assert together["momentum"].abs().max() > 0.01


def test_the_network_may_run_in_low_precision():
    network, image = make(stride=2), smooth_pair((20, 26))
    with torch.no_grad():
        full, low = (momentum_inferer(precision=p)(image, network)["momentum"] for p in ("float32", "bfloat16"))
    assert low.dtype == torch.float32
    assert 0 < (full - low).abs().max() < 0.05 * full.abs().max()


def test_the_momentum_is_refined():
    image, calls = smooth_pair((20, 26)), []

    def refinement(moving, fixed, parameters, masks, constants=None):
        calls.append((moving, fixed, parameters, masks))
        return 0.5 * parameters

    network, masks = Local(), {"mask_fixed": torch.ones(1, 1, 20, 26)}
    pred = momentum_inferer(refinement=refinement)(image, network, masks=masks)
    ((moving, fixed, parameters, given),) = calls
    assert torch.equal(torch.cat([moving, fixed], 1), image)
    assert given is masks
    torch.testing.assert_close(parameters, network(image))
    torch.testing.assert_close(pred["momentum"], 0.5 * network(image))


def test_patches_are_run_as_they_are():
    network, image = make(stride=2), random_image(WHOLE, 3)
    pred = PatchInferer(vector_momentum())(image, network)
    assert pred.keys() == {"prediction"}
    torch.testing.assert_close(pred["prediction"], network(image))


# Samples


@torch.no_grad()
def sampled(image, network, samples=3, **options):
    return momentum_inferer(samples=samples, **options)(image, network)


@pytest.fixture(scope="module")
def network_with_dropout():
    return make(features=4, stride=2, dropout=0.2)


@wholes
def test_samples_differ_and_their_spread_is_that_of_the_velocities(size):
    network, image = make(len(size), stride=2, dropout=0.2), smooth_pair(size, 2)
    deformation = Recording(KERNEL, 1.0, 2, 2)
    inferer = PatchMomentumInferer(deformation, patch=PATCH, samples=3)
    with torch.no_grad():
        pred = inferer(image, network)
    assert pred["ddf_samples"].shape == (2, 3, len(size), *size)
    momenta = deformation.calls[-3:]
    mean = torch.stack(momenta).mean(0)
    torch.testing.assert_close(pred["momentum"], mean)
    torch.testing.assert_close(pred["ddf"], vector_momentum()(mean, size)["ddf"])
    fields = [vector_momentum()(momentum, size) for momentum in momenta]
    torch.testing.assert_close(pred["ddf_samples"], torch.stack([field["ddf"] for field in fields], 1))
    torch.testing.assert_close(pred["velocity_sd"], torch.stack([field["velocity"] for field in fields]).std(0))
    for i, k in itertools.combinations(range(3), 2):
        assert (pred["ddf_samples"][:, i] != pred["ddf_samples"][:, k]).any()
    assert (pred["velocity_sd"].flatten(1).mean(1) > 0).all()


def test_samples_follow_the_seed(network_with_dropout):
    image = smooth_pair((20, 26))
    first, again, other = (sampled(image, network_with_dropout, seed=s)["ddf_samples"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_sample_has_no_deviation(network_with_dropout):
    pred = sampled(smooth_pair((20, 26)), network_with_dropout, samples=1)
    assert "velocity_sd" not in pred
    torch.testing.assert_close(pred["ddf_samples"][:, 0], pred["ddf"])


def test_without_samples_dropout_is_off(network_with_dropout):
    image = smooth_pair((20, 26))
    with torch.no_grad():
        first, again = (momentum_inferer()(image, network_with_dropout) for _ in range(2))
    assert torch.equal(first["ddf"], again["ddf"])
    assert "ddf_samples" not in first


@pytest.mark.parametrize("mode", ["eval", "train", "eval but an encoder", "train but an encoder"])
def test_sampling_leaves_modes_and_random_numbers_alone(mode):
    network = make(stride=2, dropout=0.2).train(mode.startswith("train"))
    if mode.endswith("encoder"):
        network.fixed.train(not network.training)
    before = [module.training for module in network.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    sampled(smooth_pair((20, 26)), network, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == before


@pytest.mark.parametrize("network", [make(stride=2), nn.Conv2d(2, 2, 1)], ids=["probability 0", "none"])
def test_a_network_without_dropout_has_no_samples(network):
    with pytest.raises(ValueError, match="samples need a network that was trained with dropout"):
        sampled(smooth_pair((20, 26)), network)


def test_a_negative_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        momentum_inferer(samples=-1)


# All together


def trained(inferer, image, momentum, features=8, iterations=150):
    """A network trained on all patches of the pairs; a correction if the inferer has a predictor."""
    torch.manual_seed(0)
    network, loss = QuicksilverNetwork(2, features, 2), MomentumLoss()
    with torch.no_grad():
        seen, there = inferer.before(image)
    missing = momentum - there
    places = list(itertools.product(range(len(image)), patch_starts(momentum.shape[2:], 15, 1)))
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, iterations)
    for _ in range(iterations):
        drawn = [places[i] for i in torch.randint(len(places), (12,)).tolist()]
        patches = torch.stack([cut(seen[b], start, 15, 2) for b, start in drawn])
        targets = torch.stack([cut(missing[b], start, 15) for b, start in drawn])
        value = loss(PatchInferer(None)(patches, network), {"momentum": targets})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


def test_a_trained_network_predicts_deformations_and_a_correction_improves_them():
    size, deformation = (40, 40), VectorMomentum(HelmholtzKernel(4.0, 1.0), 1.0, num_steps=4, stride=2)
    generator = torch.Generator().manual_seed(1)
    momentum = random_velocity((20, 20), amplitude=1.5, spacings=(6.0,), batch=2, generator=generator)
    true = deformation(momentum, size)["ddf"]
    moving = smooth_pair(size, 2)[:, :1]
    image = torch.cat([moving, warp(moving, true, padding="border")], 1)

    @torch.no_grad()
    def error(network, **options):
        ddf = PatchMomentumInferer(deformation, step=5, **options)(image, network)["ddf"]
        return float((ddf - true).norm(dim=1).mean())

    network = trained(PatchMomentumInferer(deformation), image, momentum)
    correction = trained(PatchMomentumInferer(deformation, step=5, predictor=network), image, momentum)
    correction.corrects = network.digest()
    before, predicted = float(true.norm(dim=1).mean()), error(network)
    assert before > 1
    assert predicted < 0.5 * before
    assert error(network, correction=correction) < 0.6 * predicted


def test_a_kernel_with_padding_is_refused_before_any_training():
    with pytest.raises(ValueError, match="without padding"):
        MomentumLoss("l1", HelmholtzKernel(9.0, 1.0, padding="zeros"))


def test_the_stride_scales_each_axis_of_the_spacing():
    difference = torch.randn(1, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    pair = {"prediction": difference}, {"momentum": torch.zeros_like(difference)}
    scaled = MomentumLoss("l2", KERNEL, (1.0, 1.5), stride=2)(*pair)
    assert scaled == MomentumLoss("l2", KERNEL, (2.0, 3.0))(*pair)
    assert scaled != MomentumLoss("l2", KERNEL, 2.0)(*pair)


def test_a_velocity_gives_back_its_momentum_on_anisotropic_grids():
    kernel = HelmholtzKernel(2.0, 1.0, 0.7, power=2)
    momentum = 0.3 * torch.randn(1, 2, 12, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"kernel": kernel, "spacing": (1.0, 1.7), "stride": 1, "num_steps": 2}
    first = VectorMomentum(**options)(momentum, (12, 11))
    second = VectorMomentum(**options, quantity="velocity")(first["velocity"], (12, 11))
    torch.testing.assert_close(second["ddf"], first["ddf"])
