"""Affine and momentum registration in several steps: inferer, losses, pre-alignment by a network."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from custom_components.affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine
from custom_components.data.phantoms import phantom_pair, write_phantom_scans
from custom_components.deformations.affine import AffineMap
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.fields import compose, warp
from custom_components.files import load_parts
from custom_components.inference.alignment import NetworkAligner
from custom_components.inference.multistep import MultiStepInferer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.multistep import MultiStepLoss, inconsistency
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE, multi_kernel_lncc
from custom_components.methods.avsm.inference import AffineInferer
from custom_components.methods.avsm.networks import AffineMomentumNetwork, AffineNetwork
from custom_components.methods.avsm.objective import AffineLoss, lattice_points, mean_square_distance
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine
from custom_components.networks.momentum_net import MomentumNetwork
from custom_components.space import load_image
from custom_components.training.schedules import Schedule, falling_weight
from custom_components.transforms.load import LoadPaird

SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def near_identity(d, batch=2, seed=0, amount=0.1):
    noise = torch.randn(batch, d, d + 1, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d, d + 1) + amount * noise


# The affine map and its loss


@both
def test_an_affine_map_and_its_inverse_undo_each_other(size):
    matrix = near_identity(len(size))
    pred = AffineMap()(matrix, size, inverse=True)
    assert torch.equal(pred["matrix"], matrix)
    torch.testing.assert_close(pred["ddf"], affine_to_ddf(centred_to_voxel(matrix, size), size))
    torch.testing.assert_close(AffineMap()(invert_affine(matrix), size)["ddf"], pred["inverse_ddf"])


@both
def test_the_distance_of_two_maps_is_that_of_their_displacements(size):
    one, two = near_identity(len(size)), near_identity(len(size), seed=1)
    fields = [AffineMap()(matrix, size)["ddf"] for matrix in (one, two)]
    expected = (fields[0] - fields[1]).square().sum(1).flatten(1).mean(1) / ((max(size) - 1) / 2) ** 2
    torch.testing.assert_close(mean_square_distance(one, two, size), expected)


@both
def test_affine_loss_has_the_terms_that_are_asked_for(size):
    matrix, back = near_identity(len(size)), near_identity(len(size), seed=1)
    image = torch.rand(2, 1, *size)
    pred = {"matrix": matrix, "warped": image, "back": {"matrix": back, "warped": 0 * image}}
    batch = {"moving": image, "fixed": image, "matrix": matrix}
    total = AffineLoss(MSE(1.0), points=2.0, penalty=3.0, symmetry=4.0)(pred, batch)
    identity = torch.eye(len(size), len(size) + 1)
    expected = {
        "points": 0,
        "similarity": image.square().mean() / 2,
        "penalty": 3 * sum((m - identity).square().sum() for m in (matrix, back)) / 4,
        "symmetry": 4 * (compose_affine(matrix, back) - identity).square().sum() / 2,
    }
    assert pred["terms"].keys() == expected.keys()
    for name, value in expected.items():
        assert float(pred["terms"][name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert float(total) == pytest.approx(float(sum(pred["terms"].values())), rel=1e-5)


def test_the_penalty_falls_as_in_the_authors_code():
    expected = {0: 10, 9: 10, 10: 7.5, 13: 5.2, 16: 2.9, 20: 0.97, 30: 0.04, 200: 0.001}
    for epoch, value in expected.items():
        assert falling_weight(epoch) == pytest.approx(value, rel=0.05), epoch


@pytest.mark.parametrize("value", [lambda epoch: 1 if epoch < 2 else 3, {0: 1, 2: 3}, {"0": 1, "2": 3}])
def test_a_schedule_sets_a_number_at_each_epoch(value):
    loss, seen = AffineLoss(points=1.0), []
    engine = Engine(lambda *_: seen.append(loss.penalty))
    Schedule(loss, "penalty", value).attach(engine)
    engine.run([0], max_epochs=4)
    assert seen == [1, 1, 3, 3]


def test_a_schedule_of_nothing_is_refused():
    with pytest.raises(ValueError, match="AffineLoss has no 'penalti' to set"):
        Schedule(AffineLoss(points=1.0), "penalti", {0: 1})
    with pytest.raises(ValueError, match=r"from epoch 0 on, got epochs \[3\]"):
        Schedule(AffineLoss(points=1.0), "penalty", {3: 1})


@pytest.mark.parametrize(
    ("size", "windows", "weights"),
    [
        ((160, 192, 192), [9, 19, 39], [0.1, 0.3, 0.6]),
        ((80, 192, 192), [19, 39], [0.3, 0.7]),
        ((40, 50), [19], [1.0]),
        ((3, 5), [3], [1.0]),
    ],
)
def test_windows_of_several_sizes_follow_the_shortest_side(size, windows, weights):
    similarity = multi_kernel_lncc(size)
    assert [part.window for part in similarity.similarities] == windows
    assert similarity.weights == weights
    image = torch.rand(1, 1, *[min(n, 20) for n in size])
    assert float(multi_kernel_lncc(image.shape[2:])(image, image)) == pytest.approx(0, abs=2e-2)


def test_parts_of_a_network_are_loaded_from_their_files(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        return AffineMomentumNetwork(MultiStepAffine(AffineNetwork(2)), MomentumNetwork(2, (4, 4, 4)))

    network, other = make(0), make(1)
    torch.save(other.affine.state_dict(), tmp_path / "affine.pt")
    before = {name: value.clone() for name, value in network.momentum.state_dict().items()}
    load_parts(network, {"affine": tmp_path / "affine.pt", "momentum": "none"})
    torch.testing.assert_close(dict(network.affine.state_dict()), dict(other.affine.state_dict()))
    torch.testing.assert_close(dict(network.momentum.state_dict()), before)
    with pytest.raises(ValueError, match="not weights of this momentum network"):
        load_parts(network, {"momentum": tmp_path / "affine.pt"})


@both
def test_the_root_of_a_momentum_shoots_as_the_momentum(size):
    momentum = 3 * torch.randn(2, len(size), *[-(-n // 2) for n in size])
    plain = shots()
    rooted = VectorMomentum(plain.kernel, num_steps=5, stationary=True, quantity="root")
    root = plain.to_unknown(momentum, size)
    torch.testing.assert_close(rooted(root, size)["ddf"], plain(momentum, size)["ddf"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rooted(root, size)["momentum"], momentum, atol=1e-3, rtol=1e-3)
    assert rooted.to_unknown(root, size) is root
    assert rooted.from_unknown(root, size) is root


def test_a_limited_momentum_is_bounded():
    network, image = MomentumNetwork(2, (4, 4, 4), head_std=10.0, limit=2.0), torch.rand(1, 2, 16, 16)
    free = MomentumNetwork(2, (4, 4, 4), head_std=10.0, scale=3.0)
    free.load_state_dict(network.state_dict())
    assert free(image).abs().max() > 6
    torch.testing.assert_close(network(image), 2 * torch.tanh(free(image) / 6))
    with pytest.raises(ValueError, match="scale and limit above 0"):
        MomentumNetwork(limit=0)


def test_affine_loss_says_what_it_misses():
    with pytest.raises(ValueError, match="expected a similarity or a weight of the points"):
        AffineLoss()
    pred = {"matrix": near_identity(2), "warped": torch.rand(2, 1, 8, 8)}
    with pytest.raises(ValueError, match="register both ways"):
        AffineLoss(MSE(), symmetry=1.0)(pred, {"fixed": pred["warped"]})
    with pytest.raises(ValueError, match="batch\\['matrix'\\]"):
        AffineLoss(points=1.0)(pred, {"fixed": pred["warped"]})


@both
def test_anchors_are_met_where_the_keypoints_lie_on_the_moved_lattice(size):
    d = len(size)
    matrices = {f"matrix_{role}": near_identity(d, seed=i) for i, role in enumerate(("fixed", "moving"))}
    lattice = lattice_points(3**d, d, 0.4)
    keypoints = [
        torch.linalg.solve(m[:, :, :d], lattice.T - m[:, :, d:]).transpose(1, 2)
        for m in (matrices["matrix_fixed"], matrices["matrix_moving"])
    ]
    pred = {"matrix": near_identity(d), "keypoints": keypoints}
    image = torch.zeros(2, 1, *size)
    batch = {"moving": image, "fixed": image, "matrix": near_identity(d), **matrices}
    loss = AffineLoss(points=1.0, anchors=10.0)
    assert float(loss(pred, batch)) == pytest.approx(0, abs=1e-9)
    pred["keypoints"] = [points + 0.1 for points in keypoints]
    assert float(loss(pred, batch)) == pytest.approx(10 * d * 0.01, rel=1e-4)


def test_a_lattice_has_as_many_points_along_each_axis():
    points = lattice_points(27, 3, (0.4, 0.5, 0.6))
    assert points.shape == (27, 3)
    torch.testing.assert_close(points.amax(0), torch.tensor([0.4, 0.5, 0.6]))
    torch.testing.assert_close(points.sum(0), torch.zeros(3), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"expected n\^3 keypoints .* got 32"):
        lattice_points(32, 3, 0.4)


@both
def test_the_affine_inferer_gives_both_ways_and_keypoints(size):
    torch.manual_seed(0)
    d = len(size)
    network = MultiStepAffine(AffineKeypointNetwork(d, (4, 8), 1, 3**d), num_steps=2)
    image = images(size)
    moving, fixed = image.chunk(2, 1)
    pred = AffineInferer(AffineMap(), keypoints=True, symmetric=True)(image, network)
    torch.testing.assert_close(pred["matrix"], network(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(pred["back"]["matrix"], network(torch.cat([fixed, moving], 1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(pred["warped"], warp(moving, pred["ddf"]))
    torch.testing.assert_close(pred["back"]["warped"], warp(fixed, pred["back"]["ddf"]))
    for found, expected in zip(pred["keypoints"], network.network.keypoints(image)[:2], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    plain = AffineInferer(AffineMap())(image, network)
    assert not {"back", "keypoints"} & plain.keys()
    with pytest.raises(ValueError, match="no samples and no refinement"):
        AffineInferer(AffineMap(), refinement=lambda *_: None)


# Several steps


class Force(nn.Module):
    """A momentum that makes the images more alike: their difference times the gradient of the moving one."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach().clone())
        moving, fixed = image.chunk(2, 1)
        slopes = torch.gradient(moving[:, 0], dim=list(range(1, image.ndim - 1)))
        momentum = self.scale * (moving - fixed) * torch.stack(slopes, 1)
        return momentum[(..., *[slice(None, None, 2)] * (image.ndim - 2))]


def shots():
    return VectorMomentum(MultiGaussianKernel((1.5, 3.0)), num_steps=5, stationary=True)


def images(size):
    pair = phantom_pair(size, batch=2, seed=3)
    return torch.cat([pair["moving"], pair["fixed"]], 1)


@both
def test_one_step_is_plain_inference(size):
    image, network = images(size), Force()
    plain = RegistrationInferer(shots(), inverse=True)(image, network)
    found = MultiStepInferer(shots(), inverse=True)(image, network)
    for key in ("ddf", "inverse_ddf", "warped"):
        torch.testing.assert_close(found[key], plain[key])
    assert len(found["steps"]) == 1


@both
def test_each_step_sees_the_original_image_warped_once(size):
    image, network = images(size), Force()
    with torch.no_grad():
        pred = MultiStepInferer(shots(), num_steps=3, inverse=True)(image, network)
    moving, fixed = image.chunk(2, 1)
    assert torch.equal(network.seen[0], image)
    for seen, step in zip(network.seen[1:], pred["steps"], strict=False):
        torch.testing.assert_close(seen, torch.cat([warp(moving, step["ddf"]), fixed], 1))
    errors = [float((step["warped"] - fixed).square().mean()) for step in pred["steps"]]
    assert errors[2] < errors[1] < errors[0] < float((moving - fixed).square().mean())
    assert pred["ddf"] is pred["steps"][-1]["ddf"] or torch.equal(pred["ddf"], pred["steps"][-1]["ddf"])
    inside = (slice(None), slice(None), *[slice(3, -3)] * len(size))
    round_trip = pred["ddf"] + warp(pred["inverse_ddf"], pred["ddf"], padding="border")
    assert round_trip[inside].norm(dim=1).mean() < 0.1 * pred["ddf"][inside].norm(dim=1).mean()


@both
def test_both_ways_are_the_two_orders_of_a_pair(size):
    image, network = images(size), Force()
    moving, fixed = image.chunk(2, 1)
    inferer = MultiStepInferer(shots(), num_steps=2, symmetric=True)
    with torch.no_grad():
        pred = inferer(image, network)
        back = inferer(torch.cat([fixed, moving], 1), network)
    torch.testing.assert_close(pred["back"]["ddf"], back["ddf"])
    torch.testing.assert_close(pred["ddf"], back["back"]["ddf"])
    assert len(pred["seconds"]) == 2


@both
def test_the_loss_is_summed_over_the_steps_and_averaged_over_the_ways(size):
    image, network = images(size), Force()
    moving, fixed = image.chunk(2, 1)
    pred = MultiStepInferer(shots(), num_steps=2, symmetric=True)(image, network)
    single = RegistrationLoss(MSE(1.0), MeanEnergy(), 0.1, regularized="energy")
    batch = {"moving": moving, "fixed": fixed, "label_moving": moving, "label_fixed": fixed}
    total = MultiStepLoss(single, symmetry=500.0)(pred, batch)
    there = sum(single(step, {"moving": moving, "fixed": fixed}) for step in pred["steps"])
    back = sum(single(step, {"moving": fixed, "fixed": moving}) for step in pred["back"]["steps"])
    symmetry = 500 * inconsistency(pred["ddf"], pred["back"]["ddf"])
    torch.testing.assert_close(total, (there + back) / 2 + symmetry)
    assert pred["terms"].keys() == {"similarity", "regularization", "symmetry"}
    total.backward()
    assert network.scale.grad.abs() > 0


@both
@pytest.mark.parametrize("shrink", [1, 3])
def test_the_affine_map_comes_first_and_is_trained_with_the_steps(size, shrink):
    torch.manual_seed(0)
    d, image = len(size), images(size)
    affine = MultiStepAffine(AffineKeypointNetwork(d, (4, 8), 1, 3**d))
    network = AffineMomentumNetwork(affine, Force(), shrink)
    inferer = MultiStepInferer(shots(), num_steps=1, symmetric=True, inverse=True, affine=True)
    pred = inferer(image, network)
    moving, fixed = image.chunk(2, 1)
    first = AffineMap()(network(image, part="affine"), size)["ddf"]
    torch.testing.assert_close(pred["affine"]["warped"], warp(moving, first), atol=1e-5, rtol=0)
    seen = torch.cat([pred["affine"]["warped"], fixed], 1)
    torch.testing.assert_close(network.momentum.seen[-1][: len(image)], seen)
    step = shots()(network.momentum(seen), size)["ddf"]
    torch.testing.assert_close(pred["ddf"], compose(first, step), atol=1e-4, rtol=0)
    assert pred["back"]["affine"].keys() == {"matrix", "warped"}
    loss = MultiStepLoss(
        RegistrationLoss(MSE(1.0), MeanEnergy(), 0.1, regularized="energy"), 1.0, AffineLoss(points=1.0, symmetry=1.0)
    )
    batch = {"moving": moving, "fixed": fixed, "matrix": near_identity(d)}
    loss(pred, batch).backward()
    assert pred["terms"].keys() == {"similarity", "regularization", "symmetry", "affine"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_shrunken_grid_gives_the_matrix_of_the_full_one():
    """A network that answers in coordinates of the grid it sees: the map must be the same in voxels of the full one."""

    class Known(nn.Module):
        def forward(self, image):
            small = near_identity(2, batch=len(image))
            return small

    size, shrink = (31, 26), 4
    network = AffineMomentumNetwork(Known(), Force(), shrink)
    found = centred_to_voxel(network(torch.rand(1, 2, *size), part="affine"), size)[0]
    small = centred_to_voxel(near_identity(2, batch=1), (8, 7))[0]
    point = torch.tensor([2.0, 5.0])
    expected = shrink * (small @ torch.cat([point, torch.ones(1)])) + (shrink - 1) / 2
    full = shrink * point + (shrink - 1) / 2
    torch.testing.assert_close(found @ torch.cat([full, torch.ones(1)]), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="part 'affine' or 'momentum', got 'x'"):
        network(torch.rand(1, 2, *size), part="x")


@both
def test_maps_that_undo_each_other_are_consistent(size):
    matrix = near_identity(len(size), amount=0.02)
    one, two = (AffineMap()(m, size)["ddf"] for m in (matrix, invert_affine(matrix)))
    assert inconsistency(one, one) > 100 * inconsistency(one, two)


def test_wrong_settings_of_steps_are_named():
    with pytest.raises(ValueError, match="at least one step and no samples, got 0 and 0"):
        MultiStepInferer(shots(), num_steps=0)
    with pytest.raises(ValueError, match="let the inferer register both ways"):
        MultiStepLoss(RegistrationLoss(MSE(), MeanEnergy(), 1.0), symmetry=1.0)({"steps": []}, {})


# Pre-alignment in the world


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPR"])
def test_an_aligner_turns_the_networks_answer_into_a_world_matrix(axcodes, tmp_path):
    """The network finds a shift of a tenth of the grid along the first axis, on images about their centres of mass."""
    data = np.zeros((20, 24, 18), np.float32)
    data[6:14, 8:16, 5:12] = 1
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    volumes = []
    for name, origin in (("moving", 30.0), ("fixed", -10.0)):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = origin
        image = nib.Nifti1Image(data, affine).as_reoriented(to_file)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        volumes.append(load_image(tmp_path / f"{name}.nii.gz"))

    seen = []

    class Shift(nn.Module):
        def forward(self, image):
            seen.append(image)
            matrix = torch.eye(3, 4)[None].clone()
            matrix[0, 0, 3] = 0.2
            return matrix

    aligner = NetworkAligner(Shift(), spacing=4.0, size=(21, 21, 21))
    matrix = aligner(volumes[1], volumes[0])
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, 1])
    expected = np.eye(4)
    expected[:3, 3] = [40 + 0.2 * 10 * 4, 40, 40]
    np.testing.assert_allclose(matrix, expected, atol=1e-4)
    with pytest.raises(ValueError, match="the affine network is 2-D"):
        NetworkAligner(Shift(), 4.0, (21, 21))(volumes[1], volumes[0])


def test_an_aligner_reads_its_weights_at_the_first_call(tmp_path):
    images = write_phantom_scans(tmp_path, 4, (24, 24, 24), num_validation=0)
    volumes = [load_image(path) for path in sorted(Path(images).parent.glob("images/*"))[:2]]
    torch.manual_seed(0)
    network, other = AffineKeypointNetwork(3, (4, 8), 1, 8), AffineKeypointNetwork(3, (4, 8), 1, 8)
    torch.save(other.state_dict(), tmp_path / "affine.pt")
    aligner = NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "affine.pt")
    np.testing.assert_allclose(aligner(*volumes), NetworkAligner(other, 1.5, (16, 16, 16))(*volumes), atol=1e-6)
    with pytest.raises(FileNotFoundError, match="no weights of the affine network"):
        NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "none.pt")(*volumes)
    torch.save(Force().state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not weights of this affine network"):
        NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "other.pt")(*volumes)


@pytest.mark.parametrize("size", [(33, 28), (21, 18, 16)], ids=["2d", "3d"])
def test_loading_a_pair_takes_the_aligners_matrix(size, tmp_path):
    """Moving and fixed are one image with origins apart; an aligner that knows it makes them equal."""
    data = phantom_pair(size, seed=1)["moving"][0, 0].numpy()
    shift = np.array([7.0, -3.0, 2.0])
    for name, origin in (("fixed", 0 * shift), ("moving", shift)):
        affine = np.eye(4)
        affine[:3, 3] = origin
        nib.save(nib.Nifti1Image(data.reshape(*size, *[1] * (3 - len(size))), affine), tmp_path / f"{name}.nii.gz")
    seen = []

    def aligner(fixed, moving):
        seen.extend([fixed, moving])
        matrix = np.eye(len(size) + 1)
        matrix[:-1, -1] = shift[: len(size)]
        return matrix

    pair = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    loaded = LoadPaird(affine="learned", aligner=aligner)(pair)
    torch.testing.assert_close(loaded["moving"], loaded["fixed"], atol=1e-5, rtol=0)
    assert [volume.path for volume in seen] == [pair["fixed"], pair["moving"]]
    assert all(float(volume.data.min()) >= 0 and float(volume.data.max()) <= 1 for volume in seen)
    with pytest.raises(ValueError, match="'learned' needs an aligner"):
        LoadPaird(affine="learned")(pair)
