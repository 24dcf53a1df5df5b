"""A training starts from the mean or the regression of the scans, and has a score."""

import pytest
import torch
from ignite.engine import Engine
from methods.conditional_atlas.cases import (
    ATTRIBUTES,
    LABELS,
    PEOPLE,
    SIZES,
    alone,
    both,
    fitted,
    label_maps,
    make_network,
    moved,
    people,
    phantom_sizes,
    random,
    template_inferer,
)
from monai.data import DataLoader

from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.evaluation.overlap import mean_dice
from custom_components.losses.overlap import label_indicators
from custom_components.methods.conditional_atlas.batches import AtlasBatch
from custom_components.methods.conditional_atlas.training import InitializeTemplate, template_score
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.space.files import write_image
from custom_components.transforms.intensities import scale_intensity

kinds = pytest.mark.parametrize("attributes", [{"age": "numeric"}, ATTRIBUTES], ids=["number", "with category"])


def initialize(network, scans, *, batch_size=2, num_pairs=None, **settings):
    loader = DataLoader(alone(scans, num_pairs=num_pairs), batch_size=batch_size)
    prepare = AtlasBatch(network.template.encoder)
    InitializeTemplate(network, loader, prepare, **settings).attach(Engine(lambda engine, batch: None))


@both
@torch.no_grad()
def test_one_template_starts_as_the_mean_of_the_scans(size):
    scans = [{key: value for key, value in scan.items() if key not in ATTRIBUTES} for scan in people(size)]
    for i, scan in enumerate(scans):
        scan["grid_affine"] = scan["grid_affine"].clone()
        scan["grid_affine"][0, -1] += i
    network = make_network(size, {}, labels=[0, 1, 2, 3, 4])
    initialize(network, scans)
    torch.testing.assert_close(network.template.image[0], torch.stack([scan["image"] for scan in scans]).mean(0))
    shares = torch.stack([torch.cat([scan["label"] == k for k in range(5)]).float() for scan in scans]).mean(0)
    torch.testing.assert_close(network.template.logits.softmax(1)[0], shares, rtol=0, atol=0.05)
    torch.testing.assert_close(network.affine, torch.stack([scan["grid_affine"] for scan in scans]).mean(0))


@both
@torch.no_grad()
def test_a_given_image_takes_the_place_of_the_mean(size, tmp_path):
    scans = people(size)
    image = random(1, *size, seed=9)
    place = scans[0]["grid_affine"].double().numpy()
    write_image(tmp_path / "template.nii.gz", image, place)
    network = make_network(size, {})
    initialize(network, scans, initial_template=tmp_path / "template.nii.gz")
    torch.testing.assert_close(network.template.image[0], scale_intensity(image), rtol=0, atol=1e-4)


def linear(size, attributes):
    """Scans that depend linearly on their attributes: noise, the same for all, and a smooth change with each."""
    sharp, scans = random(1, *size, seed=3), people(size)
    ramps = [
        torch.linspace(0, 1, n).view([-1 if i == axis else 1 for i in range(len(size))]) for axis, n in enumerate(size)
    ]
    for scan, (age, sex) in zip(scans, PEOPLE, strict=True):
        scan["image"] = sharp + (age - 48) / 50 * ramps[0] + 0.3 * sex * ramps[1] * ("sex" in attributes)
    return scans


@both
@kinds
@torch.no_grad()
def test_templates_start_as_the_regression_of_the_scans_on_their_attributes(size, attributes):
    scans, network = linear(size, attributes), make_network(size, attributes)
    initialize(network, scans)
    found = network.template(PEOPLE[:, : len(attributes)])
    torch.testing.assert_close(found, torch.stack([scan["image"] for scan in scans]), rtol=0, atol=0.02)


@both
@kinds
@torch.no_grad()
def test_the_published_form_starts_as_the_mean_of_the_scans(size, attributes):
    scans = people(size)
    scans[2]["sex"] = "F"  # as many as men, but for one
    network = make_network(size, attributes, paper=True)
    torch.nn.init.zeros_(network.template.last[0].weight)
    initialize(network, scans)
    mean = torch.stack([scan["image"] for scan in scans]).mean(0)
    assert (network.template()[0] - mean).norm() < 0.1 * mean.norm()


@both
@torch.no_grad()
def test_labels_start_as_likelier_where_they_grow_with_an_attribute(size):
    scans = people(size)
    for scan, age in zip(scans, PEOPLE[:, 0], strict=True):
        scan["label"] = torch.zeros_like(scan["label"])
        scan["label"][:, : round(float(age) / 80 * size[0])] = 2
    network = make_network(size, {"age": "numeric"}, labels=LABELS)
    initialize(network, scans)
    shares = network.template.render(torch.tensor([[20.0], [48], [75]]))[1].softmax(1)
    volume = shares[:, 1].flatten(1).mean(1)
    torch.testing.assert_close(volume, torch.tensor([20.0, 48, 75]) / 80, rtol=0, atol=0.15)


@torch.no_grad()
def test_attributes_are_scaled_by_all_scans_even_if_the_template_is_of_fewer():
    scans, network = people(SIZES[0]), make_network(SIZES[0])
    network.template.encoder.fit(torch.tensor([[0.0, 0], [1, 0]]))
    initialize(network, scans, num_scans=2)
    torch.testing.assert_close(network.template.encoder(PEOPLE), fitted()(PEOPLE))


@pytest.mark.parametrize(("num_scans", "taken"), [(1, 2), (2, 2), (3, 4)])
@torch.no_grad()
def test_whole_batches_make_the_template_until_there_are_enough_scans(num_scans, taken):
    images = []
    for change in (False, True):
        scans, network = people(SIZES[0]), make_network(SIZES[0], {})
        for scan in scans[taken:]:
            scan["image"] = scan["image"] + change
        initialize(network, scans, num_scans=num_scans, batch_size=2)
        images.append(network.template.image.clone())
    assert torch.equal(*images)


def test_scans_without_an_attribute_cannot_start_a_training():
    scans = people(SIZES[0])
    del scans[3]["age"]
    with pytest.raises(ValueError, match="age"):
        initialize(make_network(SIZES[0]), scans, num_pairs=2)


def test_registration_weights_may_come_from_another_bundle(tmp_path):
    network, other = make_network(SIZES[0]), make_network(SIZES[0], seed=1)
    torch.save(other.registration.state_dict(), tmp_path / "model.pt")
    initialize(network, people(SIZES[0]), registration_weights=tmp_path / "model.pt")
    pair = random(1, 2, *SIZES[0])
    assert torch.equal(network.registration(pair), other.registration(pair))


def test_registration_weights_of_another_network_are_refused_in_one_sentence(tmp_path):
    torch.save(VoxelMorphUNet(2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: these are not weights of this registration network") as caught:
        initialize(make_network(SIZES[0]), people(SIZES[0]), registration_weights=tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


@phantom_sizes
@pytest.mark.parametrize("labelled", [False, True])
@torch.no_grad()
def test_a_better_registration_has_a_higher_score(size, labelled):
    pair = phantom_pair(size, seed=2, amplitude=3.0)
    settings = {"labels": [0, 1, 2, 3, 4]} if labelled else {}
    scores = []
    for share in (0.0, 0.5, 1.0):
        network = moved(size, share * pair["svf"], {}, **settings)
        if labelled:
            network.template.initialize(pair["moving"], label_indicators(pair["label_moving"], range(5)).float())
        pred = template_inferer()(pair["fixed"], network)
        targets = {"moving": pair["fixed"]} | ({"label_moving": pair["label_fixed"]} if labelled else {})
        scores.append(float(template_score({"label": targets, "pred": pred})))
    assert scores[0] + 0.02 < scores[1] < scores[2] <= 1
    if labelled:
        expected = mean_dice(pred["warped_template_label"], pair["label_fixed"])
    else:
        expected = normalized_cross_correlation(pred["warped_template"], pair["fixed"])
    assert scores[-1] == pytest.approx(float(expected))


def test_labels_that_the_template_does_not_know_do_not_lower_the_score():
    """As they count for nothing in the loss."""
    labels = label_maps(SIZES[0], 1)
    pred = {
        "warped_template_label": labels.masked_fill(labels == 4, 0),
        "template_label_ids": torch.tensor([[0, 1, 2, 3]]),
    }
    assert float(template_score({"label": {"label_moving": labels}, "pred": pred})) > 0.9


def test_a_template_that_has_lost_a_label_scores_lower():
    labels = label_maps(SIZES[0], 1)
    pred = {"warped_template_label": labels.masked_fill(labels == 4, 0), "template_label_ids": torch.arange(5)[None]}
    assert float(template_score({"label": {"label_moving": labels}, "pred": pred})) < 0.8
