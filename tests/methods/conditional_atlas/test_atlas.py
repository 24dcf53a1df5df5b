"""Templates: what they are for which attributes, that they are learned in the middle of the scans, and their files."""

import csv
import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import DataLoader, decollate_batch, list_data_collate
from PIL import Image
from support import blobs, oriented, run

from custom_components.data.batches import SynthesizedBatch
from custom_components.data.pairs import ScanPairDataset
from custom_components.data.phantoms import phantom_pair, random_velocity, write_phantom_scans
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.metrics import gradient_energy, normalized_cross_correlation
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, integrate_velocity, warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.overlap import label_indicators
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, MSE, SimilaritySum
from custom_components.methods.conditional_atlas.attributes import AttributeEncoder
from custom_components.methods.conditional_atlas.batches import AtlasBatch, SynthesizeScan
from custom_components.methods.conditional_atlas.files import LoadToTemplated, render, write_sweep, write_template
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork, MeanStream
from custom_components.methods.conditional_atlas.objective import TemplateLoss
from custom_components.methods.conditional_atlas.pictures import template_animation, template_picture
from custom_components.methods.conditional_atlas.template import ConditionalTemplate, template_settings
from custom_components.methods.conditional_atlas.training import InitializeTemplate, template_score
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.space import (
    DisplacementField,
    Grid,
    load_image,
    load_labels,
    resample,
    write_affine_transform,
    write_image,
)
from custom_components.synthesis.contrast import RandomContrast
from custom_components.training.logs import loss_terms
from custom_components.transforms.load import LoadPaird, scale_intensity
from custom_components.transforms.save import SavePaird

SIZES = [(24, 28), (12, 14, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
# Phantoms move along axes of 16 voxels and more.
phantom_sizes = pytest.mark.parametrize("size", [(24, 28), (18, 20, 16)], ids=["2-D", "3-D"])
all_sizes = pytest.mark.parametrize("size", [*SIZES, (13, 18), (9, 12, 7)], ids=str)
ATTRIBUTES = {"age": "numeric", "sex": ["F", "M"]}
kinds = pytest.mark.parametrize("attributes", [{"age": "numeric"}, ATTRIBUTES], ids=["number", "with category"])
PEOPLE = torch.tensor([[20.0, 0], [35, 1], [50, 1], [75, 0], [60, 1]])
SOME = torch.tensor([[25.0, 1], [70, 0], [70, 1]])
LABELS = [0, 2, 5]


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_template(size, attributes=ATTRIBUTES, *, spread=0.0, seed=0, **settings):
    """A template of noise; slopes and the decoder's last layer are drawn with the SD `spread`, if that is not 0."""
    torch.manual_seed(seed)
    template = ConditionalTemplate(size, attributes, **{"features": (8, 8, 4), "hidden": 6, **settings})
    count = len(template.label_ids)
    shares = random(1, count, *size, seed=7).mul(3).softmax(1) if count else None
    template.initialize(random(1, template.channels, *size, seed=seed), shares)
    if template.conditional:
        if attributes == ATTRIBUTES:
            template.encoder.fit(PEOPLE)
        if spread:
            for parameter in (template.last[0].weight, template.slopes, template.label_slopes):
                torch.nn.init.normal_(parameter, std=spread)
    return template


def make_network(size, attributes=ATTRIBUTES, *, flow_std=0.05, **settings):
    template = make_template(size, attributes, **settings)
    channels = {"encoder_channels": (4, 6), "decoder_channels": (6, 4, 4)}
    return AtlasNetwork(template, VoxelMorphUNet(len(size), half_resolution=True, flow_std=flow_std, **channels))


def differs(a, b):
    """The claim is not empty: these have little to do with each other."""
    return float((a - b).norm()) > 0.05 * float(a.norm())


# AttributeEncoder


def test_numbers_are_standardised_by_the_training_data():
    encoder = AttributeEncoder({"age": "numeric", "volume": "numeric"})
    raw = 30 * random(40, 2) + torch.tensor([50.0, -7.0])
    encoder.fit(raw)
    encoded = encoder(raw)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(2))


def test_categories_become_one_hot_beside_standardised_numbers():
    encoder = AttributeEncoder({"site": ["a", "b", "c"], "age": "numeric", "sex": ["F", "M"]})
    assert encoder.size == 6
    raw = torch.tensor([[0.0, 20, 1], [2, 40, 0], [1, 60, 1]])
    encoder.fit(raw)
    ages = (raw[:, 1] - 40) / raw[:, 1].std(correction=0)
    expected = [[1, 0, 0, ages[0], 0, 1], [0, 0, 1, ages[1], 1, 0], [0, 1, 0, ages[2], 0, 1]]
    torch.testing.assert_close(encoder(raw), torch.tensor(expected))


def test_without_attributes_numbers_are_at_their_mean_and_categories_in_equal_parts():
    encoder = AttributeEncoder({"age": "numeric", "site": ["a", "b", "c", "d"]})
    encoder.fit(torch.tensor([[20.0, 0], [80, 3]]))
    assert encoder().tolist() == [[0, 0.25, 0.25, 0.25, 0.25]]


def test_attributes_are_given_by_name_in_any_order():
    encoder = AttributeEncoder(ATTRIBUTES)
    assert encoder.values({"sex": "M", "age": "41.5"}).tolist() == [41.5, 1]
    assert encoder.values({"age": np.float32(3), "sex": "F"}).tolist() == [3, 0]


@pytest.mark.parametrize(
    "value",
    [2, "2", 2.0, torch.tensor(2)],
    ids=["int", "text", "float", "tensor"],
)
def test_categories_may_be_numbers(value):
    assert AttributeEncoder({"stage": [1, 2, 3]}).values({"stage": value}).tolist() == [1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"age": 40}, "the template's attributes are age, sex; given were age"),
        ({}, "the template's attributes are age, sex; given were none"),
        ({"age": 40, "sex": "F", "iq": 100}, "the template's attributes are age, sex; given were age, sex, iq"),
        ({"age": "old", "sex": "F"}, "attribute age: expected a number, got 'old'"),
        ({"age": None, "sex": "F"}, "attribute age: expected a number, got None"),
        ({"age": float("nan"), "sex": "F"}, "attribute age: expected a number, got nan"),
        ({"age": 40, "sex": "X"}, "attribute sex: expected one of F, M, got X"),
    ],
)
def test_impossible_attributes_are_named(given, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        AttributeEncoder(ATTRIBUTES).values(given)


def test_what_the_training_data_did_not_cover_is_said():
    encoder = AttributeEncoder({**ATTRIBUTES, "volume": "numeric"})
    encoder.fit(torch.tensor([[20.0, 0, 1.5], [80, 0, 2.5]]))
    assert encoder.outside(torch.tensor([20.0, 1, 2.5])) == []
    found = encoder.outside(torch.tensor([19.0, 1, 3.0]))
    assert found == ["age 19 (trained from 20 to 80)", "volume 3 (trained from 1.5 to 2.5)"]


def test_an_attribute_that_is_the_same_for_all_is_refused():
    encoder = AttributeEncoder(ATTRIBUTES)
    with pytest.raises(ValueError, match="attribute age: the same for all 3 scans"):
        encoder.fit(torch.tensor([[40.0, 0], [40, 1], [40, 0]]))
    encoder.fit(torch.tensor([[40.0, 0], [50, 0]]))


@pytest.mark.parametrize(
    "kind",
    ["number", ["F"], ["F", "F"], [], "FM", 5, None],
    ids=str,
)
def test_kinds_that_are_neither_numeric_nor_categories_are_refused(kind):
    with pytest.raises(ValueError, match="attribute 'x': expected 'numeric' or a list of categories"):
        AttributeEncoder({"age": "numeric", "x": kind})


def test_scale_and_range_of_the_attributes_travel_with_the_weights():
    encoder, other = AttributeEncoder(ATTRIBUTES), AttributeEncoder(ATTRIBUTES)
    encoder.fit(PEOPLE)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(SOME), encoder(SOME))
    assert other.outside(torch.tensor([90.0, 0])) == ["age 90 (trained from 20 to 75)"]


# ConditionalTemplate


@all_sizes
@pytest.mark.parametrize("paper", [False, True])
@torch.no_grad()
def test_at_first_it_is_nearly_the_mean_image_for_any_attributes(size, paper):
    torch.manual_seed(0)
    template = ConditionalTemplate(size, ATTRIBUTES, paper=paper)
    template.encoder.fit(PEOPLE)
    mean = random(1, 1, *size)
    template.initialize(mean)
    image = template(SOME)
    assert image.shape == (3, 1, *size)
    torch.testing.assert_close(image, mean.expand_as(image), rtol=0, atol=1e-5 if paper else 0.01)
    assert not torch.equal(image[0], image[1])


@all_sizes
@torch.no_grad()
def test_without_attributes_it_is_one_learned_image_and_nothing_else(size):
    template = ConditionalTemplate(size)
    mean = random(1, 1, *size)
    template.initialize(mean)
    for attributes in (None, torch.zeros(3, 0)):
        image, logits = template.render(attributes)
        assert torch.equal(image, mean)
        assert logits.shape == (1, 0, *size)
    assert sum(p.numel() for p in template.parameters()) == mean.numel()


@all_sizes
@pytest.mark.parametrize("paper", [False, True])
@torch.no_grad()
def test_a_batch_of_attributes_equals_single_calls(size, paper):
    template = make_template(size, spread=0.3, paper=paper, labels=LABELS, channels=2)
    image, logits = template.render(SOME)
    assert (image.shape, logits.shape) == ((3, 2, *size), (3, 3, *size))
    for i in range(3):
        one = template.render(SOME[i : i + 1])
        torch.testing.assert_close(image[i : i + 1], one[0])
        torch.testing.assert_close(logits[i : i + 1], one[1])
    assert differs(image[0], image[1])
    assert differs(image[1], image[2])
    assert differs(logits[0], logits[1])


@torch.no_grad()
def test_without_given_attributes_it_is_that_of_average_ones():
    template = make_template(SIZES[0], {"age": "numeric", "volume": "numeric"}, spread=0.3)
    raw = 30 * random(9, 2) + 5
    template.encoder.fit(raw)
    torch.testing.assert_close(template(), template(raw.mean(0, keepdim=True)), rtol=0, atol=1e-5)
    assert differs(template(), template(raw[:1]))


@both
@pytest.mark.parametrize("paper", [False, True])
def test_gradients_reach_every_parameter(size, paper):
    template = make_template(size, spread=0.3, paper=paper, labels=LABELS, label_stride=2)
    image, logits = template.render(SOME)
    (image.square().sum() + logits.square().sum()).backward()
    for name, parameter in template.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.numel() == 0, name


@all_sizes
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_it_is_an_image_plus_slopes_plus_what_the_decoder_makes(size, stride):
    template = make_template(size, spread=0.3, labels=LABELS, label_stride=stride)
    whole = template.render(SOME)
    slopes, label_slopes = template.slopes.clone(), template.label_slopes.clone()
    template.slopes.zero_(), template.label_slopes.zero_()
    without = template.render(SOME)
    age, sex = (SOME[:, 0] - PEOPLE[:, 0].mean()) / PEOPLE[:, 0].std(correction=0), SOME[:, 1]
    for name, found, rest, each in (
        ("image", *(x[0] for x in (whole, without)), slopes),
        ("labels", *(x[1] for x in (whole, without)), label_slopes),
    ):
        each = torch.nn.functional.interpolate(each, size, mode=template.mode, align_corners=True)
        for i in range(3):
            # From equal parts of both categories: half of one more, half of the other less.
            expected = rest[i] + age[i] * each[0] + (0.5 - sex[i]) * (each[1] - each[2])
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5, msg=name)
    template.last[0].weight.zero_()
    image, logits = template.render(SOME)
    assert torch.equal(image, template.image.expand_as(image))
    assert torch.equal(logits[0], logits[1])


@all_sizes
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("attributes", [{}, ATTRIBUTES], ids=["one", "conditional"])
@torch.no_grad()
def test_labels_are_logits_on_a_coarser_grid_at_the_images_resolution(size, stride, attributes):
    template = make_template(size, attributes, labels=LABELS, label_stride=stride)
    assert template.logits.shape == (1, 3, *[-(-n // stride) for n in size])
    logits = template.render(SOME if attributes else None)[1]
    assert logits.shape == (3 if attributes else 1, 3, *size)


@both
@torch.no_grad()
def test_labels_probabilities_start_as_the_shares_of_the_scans(size):
    shares = random(1, 3, *size).mul(8).softmax(1)
    template = ConditionalTemplate(size, ATTRIBUTES, labels=LABELS)
    template.initialize(random(1, 1, *size), shares)
    found = template.render(SOME)[1].softmax(1)
    torch.testing.assert_close(found, shares.expand_as(found), rtol=0, atol=0.03)  # no share is below 0.01


@both
@torch.no_grad()
def test_coarse_labels_start_near_smooth_shares(size):
    ramp = torch.linspace(0, 1, size[0]).view(1, 1, -1, *[1] * (len(size) - 1)).expand(1, 1, *size)
    shares = torch.cat([0.1 + 0.4 * ramp, 0.9 - 0.4 * ramp], 1)
    template = ConditionalTemplate(size, labels=[0, 1], label_stride=2)
    template.initialize(random(1, 1, *size), shares)
    torch.testing.assert_close(template.render()[1].softmax(1), shares, rtol=0, atol=0.02)


def test_the_published_decoder_has_its_dense_layer():
    with torch.device("meta"):
        template = ConditionalTemplate((160, 192, 224), {"age": "numeric", "volume": "numeric"}, paper=True)
    assert sum(p.numel() for p in template.start.parameters()) == 82_575_360
    assert sum(p.numel() for p in template.parameters()) - template.image.numel() == pytest.approx(82.6e6, rel=1e-3)


def test_the_decoder_is_small_beside_the_published_one():
    with torch.device("meta"):
        template = ConditionalTemplate((160, 192, 224), {"age": "numeric", "volume": "numeric"})
    decoder = (template.start, template.levels, template.last)
    assert sum(p.numel() for part in decoder for p in part.parameters()) < 2e6


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [
        ({"age": "numeric", "sex": ["M", "F"]}, LABELS),
        ({"age": "numeric", "site": ["F", "M"]}, LABELS),
        ({"years": "numeric", "sex": ["F", "M"]}, LABELS),
        ({"sex": ["F", "M"], "age": "numeric"}, LABELS),
        ({"age": "numeric"}, LABELS),
        ({}, LABELS),
        (ATTRIBUTES, [0, 2, 6]),
        (ATTRIBUTES, [0, 5, 2]),
        (ATTRIBUTES, None),
    ],
    ids=["categories", "site", "years", "order", "age", "none", "other labels", "label order", "no labels"],
)
def test_weights_for_other_attributes_or_labels_are_refused(attributes, labels):
    weights = make_template(SIZES[0], labels=LABELS).state_dict()
    other = make_template(SIZES[0], attributes, labels=labels)
    with pytest.raises(RuntimeError, match=r"weights of a template with .*'age': 'numeric'.*, not "):
        other.load_state_dict(weights)


@all_sizes
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labels"])
@pytest.mark.parametrize("attributes", [{}, ATTRIBUTES], ids=["one", "conditional"])
@torch.no_grad()
def test_weights_say_what_to_make_for_them(size, stride, labels, attributes, tmp_path):
    network = make_network(size, attributes, spread=0.3, labels=labels, label_stride=stride)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    made = template_settings(weights)
    assert made["size"] == list(size)
    assert (made["attributes"], made["labels"]) == (attributes, labels)
    template = ConditionalTemplate(**made)
    template.load_state_dict({k.removeprefix("template."): v for k, v in weights.items() if k.startswith("template.")})
    for found, expected in zip(template.render(), network.template.render(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "weights",
    [{}, VoxelMorphUNet(2).state_dict(), {"template.image": torch.zeros(1, 1, 8, 8)}],
    ids=["empty", "U-Net", "image alone"],
)
def test_weights_of_no_atlas_are_refused(weights):
    with pytest.raises(ValueError, match="not the weights of an atlas"):
        template_settings(weights)


@pytest.mark.parametrize(
    ("size", "settings"),
    [((24,), {}), ((4, 4, 4, 4), {}), ((0, 8), {}), ((8, 8), {"labels": [1]}), ((8, 8), {"label_stride": 0})],
)
def test_impossible_templates_are_refused(size, settings):
    with pytest.raises(ValueError, match="expected a size of 2 or 3 axes"):
        ConditionalTemplate(size, **settings)


# AtlasNetwork


@all_sizes
@torch.no_grad()
def test_the_template_is_made_of_the_attributes_or_given(size):
    network, scans = make_network(size, spread=0.3), random(3, 1, *size)
    field = network(scans, SOME)
    assert field.shape == (3, len(size), *[(n + 1) // 2 for n in size])
    assert torch.equal(field, network(scans, template=network.template(SOME)))
    assert torch.equal(field, network.registration(torch.cat([network.template(SOME), scans], 1)))
    assert torch.equal(network(scans), network(scans, template=network.template()))
    assert differs(field, network(scans))


@pytest.mark.parametrize(
    "settings",
    [{"attributes": {}}, {"labels": LABELS, "label_stride": 2}, {"paper": True}],
    ids=["one", "labels", "paper"],
)
@all_sizes
@torch.no_grad()
def test_scripted_network_gives_the_same_field(size, settings):
    network, scans = make_network(size, spread=0.3, **settings), random(3, 1, *size)
    scripted = torch.jit.script(network)
    for attributes in (None, SOME):
        torch.testing.assert_close(scripted(scans, attributes), network(scans, attributes))
    torch.testing.assert_close(scripted(scans, None, scans.flip(0)), network(scans, template=scans.flip(0)))


@pytest.mark.parametrize("attributes", [{}, ATTRIBUTES], ids=["one", "conditional"])
def test_every_parameter_is_optimised_once_at_its_rate(attributes):
    network = make_network(SIZES[0], attributes, labels=LABELS)
    groups = network.parameter_groups(1e-3, 2e-2)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(network.parameters()))
    own = {"template.image": 2e-2, "template.slopes": 2e-2, "template.logits": 0.2, "template.label_slopes": 0.2}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(own.get(name, 1e-3)), name


def test_the_templates_place_in_the_world_travels_with_the_weights():
    network, other = make_network(SIZES[1]), make_network(SIZES[1], seed=1)
    network.affine.copy_(torch.tensor(oriented("LIA", SIZES[1], (1.1, 2, 3))))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.affine, network.affine)
    assert other.affine.dtype == torch.float64


# MeanStream


def recompute(batches, cap):
    """The docstring's recursion, in float64; what each call returns."""
    mean, count, returned = torch.zeros_like(batches[0][:1]).double(), 0, []
    for batch in batches:
        count += len(batch)
        share = min(1.0, len(batch) / min(count, cap))
        mean = (1 - share) * mean + share * batch.double().mean(0, keepdim=True)
        returned.append(min(1, count / cap) * mean)
    return returned


@both
@pytest.mark.parametrize("lengths", [[3, 1, 4, 1, 5, 2], [2] * 9, [12, 1]], ids=str)
def test_running_mean_of_batches_of_any_size(size, lengths):
    small = [n // 2 for n in size]
    batches = [
        torch.randn(n, len(size), *small, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(lengths)
    ]
    stream = MeanStream(small, cap=8)
    for batch, expected in zip(batches, recompute(batches, 8), strict=True):
        torch.testing.assert_close(stream(batch).double(), expected, rtol=1e-5, atol=1e-6)


def test_up_to_the_cap_it_is_the_plain_mean_whatever_the_batches():
    fields = torch.randn(12, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    for lengths in ([1] * 12, [4, 4, 4], [5, 1, 6]):
        stream = MeanStream((5, 4), cap=12)
        for batch in fields.split(lengths):
            returned = stream(batch)
        torch.testing.assert_close(returned, fields.mean(0, keepdim=True))


def test_first_batches_hardly_count():
    stream = MeanStream((5, 4), cap=100)
    for count in (1, 2, 3):
        torch.testing.assert_close(stream(torch.ones(1, 2, 5, 4)), torch.full((1, 2, 5, 4), count / 100))


def test_beyond_the_cap_the_mean_forgets():
    stream = MeanStream((5, 4), cap=10)
    for _ in range(10):
        stream(torch.full((1, 2, 5, 4), 3.0))
    for number in range(1, 31):
        returned = stream(torch.zeros(1, 2, 5, 4))
        torch.testing.assert_close(returned, torch.full((1, 2, 5, 4), 3 * 0.9**number))


def test_a_batch_larger_than_the_cap_is_the_mean_itself():
    stream, batch = MeanStream((5, 4), cap=3), random(7, 2, 5, 4)
    stream(torch.ones(2, 2, 5, 4))
    torch.testing.assert_close(stream(batch), batch.mean(0, keepdim=True))


@both
def test_mean_pulls_on_the_current_batch_as_if_it_were_the_mean(size):
    stream, batches = MeanStream(size, cap=6), [torch.randn(n, len(size), *size) for n in (2, 1, 3, 4)]
    for batch in batches:
        batch.requires_grad_()
        returned = stream(batch)
    (3.0 * returned.square().mean()).backward()
    expected = 3.0 * 2 * returned.detach() / returned.numel() / len(batches[-1])
    torch.testing.assert_close(batches[-1].grad, expected.expand_as(batches[-1]))
    assert all(batch.grad is None for batch in batches[:-1])
    assert not stream.mean.requires_grad


def test_samples_one_by_one_and_in_batches_have_nearly_the_same_mean():
    """Of a sample that lies l samples back the weights are (1 - 1 / cap)^l / cap and (1 - 4 / cap)^(l // 4) / cap. To
    first order they differ by a share of 3 / cap within a batch of 4 and of 1.5 l / cap^2 from batch to batch; l is
    about cap."""
    cap, fields = 100, torch.randn(400, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    one, four = (MeanStream((16, 16), cap) for _ in range(2))
    for batch in fields.split(1):
        single = one(batch)
    for batch in fields.split(4):
        together = four(batch)
    assert single.square().mean().sqrt() == pytest.approx((1 / (2 * cap)) ** 0.5, rel=0.1)
    assert (single - together).norm() < 4.5 / cap * single.norm()


def test_a_loaded_stream_goes_on_as_if_never_stopped(tmp_path):
    batches = [torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    whole = MeanStream((5, 4), cap=7)
    expected = [whole(batch) for batch in batches]
    first, second = MeanStream((5, 4), cap=7), MeanStream((5, 4), cap=7)
    for batch in batches[:3]:
        first(batch)
    torch.save(first.state_dict(), tmp_path / "stream.pt")
    second.load_state_dict(torch.load(tmp_path / "stream.pt", weights_only=True))
    assert all(torch.equal(second(b), e) for b, e in zip(batches[3:], expected[3:], strict=True))


def atlas_steps(network, parameters, scans, attributes, labels, steps=2):
    """Two training steps' gradients, and what the running mean becomes."""
    stream = MeanStream(scans.shape[2:], cap=10)
    inferer = TemplateInferer(StationaryVelocity(), stream)
    wanted = None if labels is None else LABELS
    loss = TemplateLoss(MSE(), backward_weight=0.5, mean_weight=3.0, labels=wanted)
    gradients = []
    for _ in range(steps):
        batch = {"moving": scans} if labels is None else {"moving": scans, "label_moving": labels}
        network.zero_grad()
        loss(inferer(scans, network, attributes=attributes), batch).backward()
        gradients.append({k: None if p.grad is None else p.grad.clone() for k, p in parameters.items()})
        with torch.no_grad():
            for p in parameters.values():
                p.sub_(0.1 * p.grad if p.grad is not None else 0)
    return {"gradients": gradients, "mean": stream.mean, "count": stream.count}


def atlas_case(conditional):
    size = SIZES[0]
    network = make_network(size, ATTRIBUTES if conditional else {}, spread=0.3, labels=LABELS if conditional else None)
    labels = torch.tensor(LABELS)[torch.randint(3, (4, 1, *size), generator=torch.Generator().manual_seed(3))]
    return network, random(4, 1, *size, seed=5), PEOPLE[:4] if conditional else None, labels if conditional else None


def atlas_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for conditional in (True, False):
        network, *data = atlas_case(conditional)
        wrapped = torch.nn.parallel.DistributedDataParallel(network)
        mine = [None if x is None else x[2 * rank : 2 * rank + 2] for x in data]
        steps = atlas_steps(wrapped, dict(network.named_parameters()), *mine)
        torch.save(steps, f"{folder}/{conditional}_{rank}.pt")
    os._exit(0)  # gloo's threads sometimes never end


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The folder in which two processes left their steps of two trainings."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(atlas_process, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "one"])
def test_two_processes_learn_as_one_with_the_whole_batch(processes, conditional):
    network, scans, attributes, labels = atlas_case(conditional)
    expected = atlas_steps(network, dict(network.named_parameters()), scans, attributes, labels)
    for rank in (0, 1):
        found = torch.load(processes / f"{conditional}_{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["mean"], expected["mean"], rtol=1e-4, atol=1e-6)
        assert found["count"] == expected["count"] == 8
        for ours, theirs in zip(expected["gradients"], found["gradients"], strict=True):
            for name, gradient in ours.items():
                if gradient is not None:
                    torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-6)


# TemplateLoss


def loss_case(size, batch=2):
    d = len(size)
    scan, template = random(batch, 1, *size, seed=1), random(batch, 1, *size, seed=2)
    pred = {
        "template": template,
        "warped_template": random(batch, 1, *size, seed=3),
        "warped": random(batch, 1, *size, seed=4),
        "ddf": random(batch, d, *size, seed=5),
        "inverse_ddf": random(batch, d, *size, seed=6),
        "mean_displacement": random(1, d, *size, seed=7),
        "warped_template_labels": random(batch, 3, *size, seed=8).softmax(1),
    }
    ids = torch.tensor([*LABELS, 9])[torch.randint(4, (batch, 1, *size), generator=torch.Generator().manual_seed(9))]
    mask = (random(batch, 1, *size, seed=10) > 0.4).to(torch.int16)
    return pred, {"moving": scan, "mask_moving": mask, "label_moving": ids.to(torch.int16)}


WEIGHTS = {
    "forward_weight": 2.0,
    "backward_weight": 0.5,
    "mean_weight": 3.0,
    "size_weight": 0.1,
    "smoothness_weight": 0.7,
    "label_weight": 1.5,
}
TERMS = {
    "forward_weight": "similarity",
    "backward_weight": "backward",
    "mean_weight": "mean",
    "size_weight": "size",
    "smoothness_weight": "smoothness",
    "label_weight": "labels",
}


@both
def test_terms_of_the_loss_are_what_the_formula_says(size):
    pred, batch = loss_case(size)
    total = TemplateLoss(MSE(), labels=LABELS, **WEIGHTS)(pred, batch)
    mask, u = batch["mask_moving"].bool(), pred["inverse_ddf"]
    axes = range(2, u.ndim)
    likelihoods = [
        pred["warped_template_labels"][:, k][batch["label_moving"][:, 0] == label].log().sum()
        for k, label in enumerate(LABELS)
    ]
    expected = {
        "similarity": 2.0 * (pred["warped_template"] - batch["moving"])[mask].square().mean(),
        "backward": 0.5 * (pred["warped"] - pred["template"]).square().mean(),
        "mean": 3.0 * pred["mean_displacement"].square().mean(),
        "size": 0.1 * u.square().mean(),
        "smoothness": 0.7 * sum(u.diff(dim=axis).square().mean() for axis in axes) / len(size),
        "labels": -1.5 * sum(likelihoods) / mask.numel(),
    }
    assert pred["terms"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(pred["terms"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(total, sum(expected.values()))


@pytest.mark.parametrize(
    "left_out",
    TERMS,
)
def test_a_weight_of_0_leaves_its_term_out(left_out):
    pred, batch = loss_case(SIZES[0])
    needed = {"mean_weight": "mean_displacement", "label_weight": "warped_template_labels", "backward_weight": "warped"}
    pred.pop(needed.get(left_out, ""), None)
    if left_out == "label_weight":
        del batch["label_moving"]
    weights = {**WEIGHTS, left_out: 0.0}
    total = TemplateLoss(MSE(), labels=LABELS, **weights)(pred, batch)
    assert pred["terms"].keys() == {name for weight, name in TERMS.items() if weight != left_out}
    torch.testing.assert_close(total, sum(pred["terms"].values()))


def test_without_labels_and_mean_weight_fields_and_images_suffice():
    pred, batch = loss_case(SIZES[0])
    del pred["mean_displacement"], pred["warped_template_labels"], batch["label_moving"], batch["mask_moving"]
    TemplateLoss(MSE(), mean_weight=0.0)(pred, batch)
    assert pred["terms"].keys() == {"similarity", "size", "smoothness"}


@both
def test_terms_of_the_loss_reach_the_logs(size):
    pred, batch = loss_case(size)
    pred["inverse_ddf"].requires_grad_()
    loss = TemplateLoss(MSE(), labels=LABELS, **WEIGHTS)(pred, batch)
    logged = loss_terms({"loss": loss, "pred": pred})
    assert logged.keys() == {"loss", *TERMS.values()}
    assert not any(value.requires_grad for name, value in logged.items() if name != "loss")


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_backward_term_pulls_the_template_to_the_warped_scans(weight):
    pred, batch = loss_case(SIZES[0])
    template = pred["template"].requires_grad_()
    loss = TemplateLoss(MSE(), backward_weight=weight, mean_weight=0.0)(pred, batch)
    if weight:
        (gradient,) = torch.autograd.grad(loss, template)
        torch.testing.assert_close(gradient, weight * 2 * (template - pred["warped"]) / template.numel())
    else:
        assert not loss.requires_grad


@both
def test_voxels_of_no_listed_label_count_for_nothing(size):
    pred, batch = loss_case(size)
    shares = pred["warped_template_labels"].requires_grad_()
    loss = TemplateLoss(MSE(), mean_weight=0.0, labels=LABELS, label_weight=1.0)(pred, batch)
    (gradient,) = torch.autograd.grad(loss, shares)
    unlisted = (batch["label_moving"] == 9).expand_as(shares)
    assert unlisted.any()
    assert gradient[unlisted].abs().max() == 0
    assert gradient[label_indicators(batch["label_moving"], LABELS)].abs().min() > 0


def test_labels_that_are_wanted_must_be_there():
    pred, batch = loss_case(SIZES[0])
    del batch["label_moving"]
    with pytest.raises(ValueError, match="needs a label map of every scan"):
        TemplateLoss(MSE(), labels=LABELS)(pred, batch)


@both
def test_a_sum_of_similarities_is_weighted(size):
    images = [random(2, 1, *size, seed=i) for i in range(2)]
    mask = (random(2, 1, *size, seed=3) > 0.4).float()
    lncc, mse = LNCC(window=5), MSE()
    found = SimilaritySum([lncc, mse], [2.0, 0.5])(*images, mask)
    torch.testing.assert_close(found, 2.0 * lncc(*images, mask) + 0.5 * mse(*images, mask))


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 2.0, 3.0]])
def test_each_similarity_of_a_sum_has_a_weight(weights):
    with pytest.raises(ValueError, match="expected a weight for each similarity"):
        SimilaritySum([MSE(), MSE()], weights)


@both
def test_indicators_mark_each_label_in_its_order(size):
    labels = loss_case(size)[1]["label_moving"]
    found = label_indicators(labels, [5, 0])
    assert torch.equal(found, torch.cat([labels == 5, labels == 0], 1))


# TemplateInferer


class Fixed(torch.nn.Module):
    """A registration network that always finds the same velocity."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = torch.nn.Parameter(velocity)

    def forward(self, pair):
        return self.velocity.expand(len(pair), *self.velocity.shape[1:])


def moved(size, velocity, attributes=ATTRIBUTES, **settings):
    """An atlas of a phantom that is always moved by a velocity."""
    template = make_template(size, attributes, **settings)
    image = phantom_pair(size, amplitude=0.0)["fixed"]
    with torch.no_grad():
        template.image.copy_(image.expand_as(template.image))
    return AtlasNetwork(template, Fixed(velocity))


def smooth(size, amplitude=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return random_velocity(size, amplitude=amplitude, spacings=(8.0,), generator=generator)


@both
@torch.no_grad()
def test_the_scan_is_moving_and_the_template_fixed(size):
    network, scans = moved(size, smooth(size), spread=0.3), random(3, 1, *size)
    pred = TemplateInferer(StationaryVelocity())(scans, network, attributes=SOME)
    assert {"ddf", "inverse_ddf", "svf", "warped", "warped_template", "template", "seconds"} == pred.keys()
    assert pred["ddf"].shape == pred["inverse_ddf"].shape == (3, len(size), *size)
    torch.testing.assert_close(pred["template"], network.template(SOME))
    torch.testing.assert_close(pred["warped"], warp(scans, pred["ddf"]))
    torch.testing.assert_close(pred["warped_template"], warp(pred["template"], pred["inverse_ddf"]))
    torch.testing.assert_close(pred["inverse_ddf"][:1], integrate_velocity(network.registration.velocity))


@both
@torch.no_grad()
def test_the_two_fields_invert_each_other(size):
    pred = TemplateInferer(StationaryVelocity())(random(2, 1, *size), moved(size, smooth(size), {}))
    inside = (..., *[slice(4, -4)] * len(size)) if len(size) == 2 else (..., *[slice(3, -3)] * 3)
    for pair in (("ddf", "inverse_ddf"), ("inverse_ddf", "ddf")):
        error = compose(*[pred[key] for key in pair])[inside]
        assert error.square().sum(1).sqrt().mean() < 0.05
    assert pred["ddf"][inside].square().sum(1).sqrt().mean() > 0.3


@both
@torch.no_grad()
def test_a_velocity_moves_the_template_onto_the_scan(size):
    velocity = torch.zeros(1, len(size), *size)
    velocity[:, 1] = 2.0
    network = moved(size, velocity, {})
    template = network.template()
    scan = torch.cat([template[:, :, :, 2:], torch.zeros_like(template[:, :, :, :2])], 3)
    pred = TemplateInferer(StationaryVelocity())(scan, network)
    torch.testing.assert_close(pred["warped_template"], scan, rtol=0, atol=1e-4)
    torch.testing.assert_close(pred["warped"][:, :, :, 2:], template[:, :, :, 2:], rtol=0, atol=1e-4)
    assert differs(template, scan)


@both
def test_the_mean_displacement_is_the_streams(size):
    network = make_network(size, flow_std=0.2)
    stream, again = MeanStream(size, cap=4), MeanStream(size, cap=4)
    inferer = TemplateInferer(StationaryVelocity(), stream)
    for seed in range(3):
        pred = inferer(random(2, 1, *size, seed=seed), network, attributes=SOME[:2])
        assert torch.equal(pred["mean_displacement"], again(pred["ddf"]))
    assert stream.count == 6
    assert pred["mean_displacement"].requires_grad
    assert "mean_displacement" not in TemplateInferer(StationaryVelocity())(random(2, 1, *size), network)


@both
def test_gradients_reach_template_and_registration(size):
    network = make_network(size, flow_std=0.2, labels=LABELS, spread=0.3)
    scans, labels = random(2, 1, *size), torch.full((2, 1, *size), 2)
    pred = TemplateInferer(StationaryVelocity(), MeanStream(size))(scans, network, attributes=SOME[:2])
    TemplateLoss(MSE(), labels=LABELS)(pred, {"moving": scans, "label_moving": labels}).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@both
def test_labels_are_warped_with_the_template(size):
    network = moved(size, smooth(size), labels=LABELS, spread=0.3)
    inferer, scans = TemplateInferer(StationaryVelocity()), random(3, 1, *size)
    with torch.no_grad():
        pred = inferer(scans, network, attributes=SOME)
        shares = network.template.render(SOME)[1].softmax(1)
    torch.testing.assert_close(pred["template_labels"], shares)
    warped = warp(shares, pred["inverse_ddf"], padding="border")
    torch.testing.assert_close(pred["warped_template_labels"], warped)
    torch.testing.assert_close(warped.sum(1), torch.ones(3, *size))
    assert torch.equal(pred["warped_template_label"], torch.tensor(LABELS)[warped.argmax(1, keepdim=True)])
    assert "warped_template_label" not in inferer(scans, network, attributes=SOME)


@both
@torch.no_grad()
def test_one_template_serves_all_scans(size):
    network = make_network(size, {}, labels=LABELS, flow_std=0.2)
    pred = TemplateInferer(StationaryVelocity())(random(3, 1, *size), network)
    assert pred["template"].shape == (3, 1, *size)
    assert pred["template_labels"].shape == (3, 3, *size)
    assert differs(pred["ddf"][0], pred["ddf"][1])


@torch.no_grad()
def test_fields_and_template_are_single_precision_whatever_the_networks():
    network, scans = make_network(SIZES[0], spread=0.3, flow_std=0.2), random(2, 1, *SIZES[0])
    exact, rough = (
        TemplateInferer(StationaryVelocity(), precision=precision)(scans, network, attributes=SOME[:2])
        for precision in ("float32", "bfloat16")
    )
    for key in ("ddf", "inverse_ddf", "warped", "warped_template", "template"):
        assert rough[key].dtype == torch.float32
        assert not differs(exact[key], rough[key])
    assert not torch.equal(exact["ddf"], rough["ddf"])


@phantom_sizes
def test_refinement_starts_from_the_networks_velocity_and_makes_scan_and_template_more_alike(size):
    pair = phantom_pair(size, seed=2, amplitude=3.0)
    network = moved(size, smooth(size, 0.3), {})
    loss = RegistrationLoss(MSE(), GradientPenalty(), 0.01)
    deformation = StationaryVelocity()
    ncc = {}
    for iterations in (0, 12):
        optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=iterations)
        with torch.no_grad():
            pred = TemplateInferer(deformation, refinement=optimizer)(pair["fixed"], network)
        alike = {"warped": pred["template"], "warped_template": pair["fixed"]}
        ncc[iterations] = {k: float(normalized_cross_correlation(pred[k], v.detach())) for k, v in alike.items()}
        if not iterations:
            torch.testing.assert_close(pred["inverse_ddf"], integrate_velocity(network.registration.velocity.detach()))
    assert ncc[12]["warped"] > ncc[0]["warped"] + 0.02
    assert ncc[12]["warped_template"] > ncc[0]["warped_template"] + 0.02


@torch.no_grad()
def test_the_scans_mask_restricts_the_refinement():
    """A bright spot that is no part of the scan draws the template towards it, unless it is masked."""
    size = SIZES[0]
    network = moved(size, torch.zeros(1, 2, *size), {})
    scan = network.template().clone()
    scan[:, :, 1:7, 8:20] = 1
    mask = torch.ones(1, 1, *size, dtype=torch.int16)
    mask[:, :, :9] = 0
    deformation = StationaryVelocity()
    optimizer = PairwiseOptimizer(
        deformation, RegistrationLoss(MSE(), GradientPenalty(), 0.01), levels=[1], iterations=10
    )
    inferer = TemplateInferer(deformation, refinement=optimizer)
    free, masked = (inferer(scan, network, masks=masks)["ddf"].norm() for masks in (None, {"mask_moving": mask}))
    assert masked < 0.5 * free


@torch.no_grad()
def test_without_gradients_the_prediction_is_no_part_of_the_weights():
    network = make_network(SIZES[0], {})
    pred = TemplateInferer(StationaryVelocity())(random(1, 1, *SIZES[0]), network)
    assert not any(value.requires_grad for value in pred.values())
    assert pred["template"].data_ptr() != network.template.image.data_ptr()


@torch.no_grad()
def test_samples_have_the_variance_that_the_network_predicts():
    template = make_template(SIZES[0], {})
    network = AtlasNetwork(template, VoxelMorphUNet(2, log_variance=-4.0))
    pred = TemplateInferer(GaussianVelocity(smoothing=0), samples=2)(random(1, 1, *SIZES[0]), network)
    assert float(pred["velocity_sd"].mean()) == pytest.approx(np.exp(-2), rel=0.01)


def test_a_template_needs_a_velocity():
    with pytest.raises(ValueError, match="needs a deformation by a velocity, got Displacement"):
        TemplateInferer(Displacement())


@pytest.mark.parametrize("shape", [(1, 1, 24, 27), (1, 2, 24, 28)])
def test_a_scan_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected scans \(1, 24, 28\) as the template, got"):
        TemplateInferer(StationaryVelocity())(torch.rand(shape), make_network(SIZES[0]))


# AtlasBatch and single scans


def people(size, **entries):
    """Five scans with labels, attributes and the affine of their grid, no files."""
    scans = []
    for i, (age, sex) in enumerate(PEOPLE.tolist()):
        pair = phantom_pair(size, seed=i)
        affine = torch.eye(len(size) + 1, dtype=torch.float64)
        affine[:-1, -1] = -3.5
        scan = {"image": pair["fixed"][0], "label": pair["label_fixed"][0], "grid_affine": affine, "subject": f"p{i}"}
        scans.append({**scan, "age": age, "sex": "FM"[int(sex)], **entries})
    return scans


def alone(scans, **settings):
    return ScanPairDataset(scans, alone=True, **{"shuffle": False, **settings})


@both
def test_a_scan_alone_is_the_moving_image_and_the_networks_input(size):
    scans = people(size)
    dataset = alone(scans)
    assert len(dataset) == 5
    for item, scan in zip(dataset, scans, strict=True):
        entries = ("label", "grid_affine", "subject", "age", "sex")
        assert item.keys() == {"moving", "image", *[f"{name}_moving" for name in entries]}
        assert torch.equal(item["moving"], scan["image"])
        assert torch.equal(item["image"], scan["image"])
        assert torch.equal(item["label_moving"], scan["label"])
        assert (item["age_moving"], item["sex_moving"]) == (scan["age"], scan["sex"])


def test_a_scan_alone_may_be_a_label_map_only():
    scans = [{key: value for key, value in scan.items() if key != "image"} for scan in people(SIZES[0])]
    assert not {"image", "moving", "fixed"} & alone(scans)[0].keys()


def test_scans_alone_are_drawn_from_all_and_repeat_with_the_seed():
    dataset = alone(people(SIZES[0]), shuffle=True, num_pairs=50)

    def subjects(seed):
        return [item["subject_moving"] for item in dataset.set_random_state(seed)]

    assert set(subjects(1)) == {f"p{i}" for i in range(5)}
    assert subjects(1) == subjects(1) != subjects(2)


def test_one_scan_alone_is_enough():
    assert len(list(alone(people(SIZES[0])[:1]))) == 1


def test_fewer_scans_alone_are_spread_over_the_list():
    dataset = alone(people(SIZES[0]), num_pairs=2)
    assert [item["subject_moving"] for item in dataset] == ["p0", "p2"]


def test_scans_alone_are_neither_pairs_nor_pairs_with_an_atlas():
    scans = people(SIZES[0])
    with pytest.raises(ValueError, match="no pairs and no atlas"):
        alone(scans, atlas=scans[0])
    with pytest.raises(ValueError, match="no pairs and no atlas"):
        alone([{"moving": scans[0]["image"], "fixed": scans[1]["image"]}])


def fitted():
    encoder = AttributeEncoder(ATTRIBUTES)
    encoder.fit(PEOPLE)
    return encoder


@both
def test_attributes_of_a_batch_reach_the_inferer_as_raw_values(size):
    (batch,) = DataLoader(alone(people(size)), batch_size=5)
    image, targets, args, options = AtlasBatch(fitted())(batch, "cpu", True)
    assert torch.equal(image, targets["moving"])
    assert image.shape == (5, 1, *size)
    assert targets.keys() == {"moving", "label_moving"}
    assert options.keys() == {"attributes"}
    assert torch.equal(options["attributes"], PEOPLE)
    assert args == ()


def test_attributes_may_go_by_their_own_names():
    size = SIZES[0]
    batch = {"image": random(2, 2, *size), "moving": random(2, 1, *size), "age": [30, 40.5], "sex": ["M", "F"]}
    image, _, _, options = AtlasBatch(fitted())({**batch, "mask_moving": torch.ones(2, 1, *size)})
    assert torch.equal(image, batch["moving"])
    assert options["attributes"].tolist() == [[30, 1], [40.5, 0]]
    assert options["masks"].keys() == {"mask_moving"}


def test_numbers_of_a_list_may_be_categories():
    (batch,) = DataLoader(alone(people(SIZES[0], stage=2)), batch_size=5)
    options = AtlasBatch(AttributeEncoder({"stage": [1, 2]}))(batch)[3]
    assert options["attributes"].tolist() == [[1.0]] * 5


def test_a_missing_attribute_is_named():
    (batch,) = DataLoader(alone(people(SIZES[0])), batch_size=5)
    encoder = AttributeEncoder({"age": "numeric", "volume": "numeric", "site": ["a", "b"]})
    with pytest.raises(ValueError, match="the scans have no attribute volume, site: add it to the data list"):
        AtlasBatch(encoder)(batch)


def test_an_impossible_attribute_is_named():
    (batch,) = DataLoader(alone(people(SIZES[0], sex="?")), batch_size=5)
    with pytest.raises(ValueError, match=r"attribute sex: expected one of F, M, got \?"):
        AtlasBatch(fitted())(batch)


def test_one_template_for_all_gets_no_attributes():
    (batch,) = DataLoader(alone(people(SIZES[0])), batch_size=5)
    image, _, _, options = AtlasBatch(AttributeEncoder({}))(batch)
    assert torch.equal(image, batch["image"])
    assert options == {}


def test_attributes_go_to_the_device():
    (batch,) = DataLoader(alone(people(SIZES[0])), batch_size=5)
    assert AtlasBatch(fitted())(batch, "meta")[3]["attributes"].device.type == "meta"


# SynthesizeScan


def label_maps(size, batch=2):
    return phantom_pair(size, seed=2, batch=batch)["label_moving"]


@both
def test_a_scan_is_rendered_from_its_label_map_where_it_lies(size):
    labels, contrast = label_maps(size), RandomContrast(5)
    synthesis = SynthesizeScan(contrast)
    draw = synthesis.draw(2, size, torch.Generator().manual_seed(3))
    made = synthesis(labels, draw)
    assert made.keys() == {"moving", "label_moving"}
    assert torch.equal(made["label_moving"], labels)
    assert torch.equal(made["moving"], contrast(labels, draw["contrast"]))
    assert made["moving"].std() > 0.05


@both
@pytest.mark.parametrize("strip", [0.0, 1.0])
def test_stripped_maps_lose_what_lies_outside_the_brain(size, strip):
    labels = label_maps(size).clone()
    labels[labels == 1] = 500
    labels[labels == 2] = 520
    synthesis = SynthesizeScan(RandomContrast(), strip=strip)
    draw = synthesis.draw(2, size, torch.Generator().manual_seed(0))
    made = synthesis(labels, draw)
    expected = labels.masked_fill(labels >= 500, 0) if strip else labels
    assert torch.equal(made["label_moving"], expected)
    assert torch.equal(made["moving"], synthesis.contrast(expected, draw["contrast"]))


@both
def test_groups_rename_the_map_but_not_what_is_rendered(size):
    labels = label_maps(size)
    plain, grouped = SynthesizeScan(RandomContrast(5)), SynthesizeScan(RandomContrast(5), groups={"1": 7, 3: 7, "4": 2})
    draw = plain.draw(2, size, torch.Generator().manual_seed(0))
    made, expected = grouped(labels, draw), torch.zeros_like(labels)
    expected[(labels == 1) | (labels == 3)] = 7
    expected[labels == 4] = 2
    assert torch.equal(made["label_moving"], expected)
    assert torch.equal(made["moving"], plain(labels, draw)["moving"])


@both
def test_one_map_alone_goes_through_the_batch_as_it_does_directly(size):
    labels, synthesis = label_maps(size), SynthesizeScan(RandomContrast(5), groups={"2": 1})
    prepare = SynthesizedBatch(synthesis, seed=3)
    image, targets, args, options = prepare({"label_moving": labels, "age_moving": [1.0, 2.0]})
    made = synthesis(labels, synthesis.draw(2, size, torch.Generator().manual_seed(3)))
    assert torch.equal(image, made["moving"])
    assert targets.keys() == {"moving", "label_moving"}
    assert torch.equal(targets["label_moving"], made["label_moving"])
    assert (args, options) == ((), {})
    assert torch.equal(image, prepare({"label_moving": labels})[0])
    assert not torch.equal(image, SynthesizedBatch(synthesis, seed=4)({"label_moving": labels})[0])


@both
def test_scans_made_of_label_maps_keep_their_attributes(size):
    scans = [{key: value for key, value in scan.items() if key != "image"} for scan in people(size)]
    (batch,) = DataLoader(alone(scans), batch_size=5)
    synthesized = SynthesizedBatch(SynthesizeScan(RandomContrast(5)), seed=0)
    image, targets, _, options = AtlasBatch(fitted(), synthesized)(batch)
    assert torch.equal(image, targets["moving"])
    assert torch.equal(options["attributes"], PEOPLE)


# InitializeTemplate and template_score


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
    with pytest.raises(RuntimeError, match=r"model\.pt: weights of another registration network") as caught:
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
        pred = TemplateInferer(StationaryVelocity())(pair["fixed"], network)
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


# Files of templates


@both
@torch.no_grad()
def test_a_template_is_rendered_by_name(size):
    network = make_network(size, spread=0.3, labels=LABELS, label_stride=2)
    network.template.image.sub_(1.0)
    image, labels = render(network, {"sex": "M", "age": 40})
    expected, logits = network.template.render(torch.tensor([[40.0, 1]]))
    assert torch.equal(image, expected[0].clamp(min=0))
    assert expected.min() < 0
    assert torch.equal(labels, torch.tensor(LABELS, dtype=torch.int16)[logits[0].argmax(0, keepdim=True)])
    assert render(make_network(size), {"sex": "M", "age": 40})[1] is None


def test_rendering_beyond_the_training_data_is_warned_of(caplog):
    network = make_network(SIZES[0])
    with caplog.at_level(logging.WARNING):
        render(network, {"age": 70, "sex": "F"})
        assert not caplog.messages
        render(network, {"age": 90, "sex": "F"})
    assert caplog.messages == ["beyond the training data: age 90 (trained from 20 to 75)"]


def placed(network, size):
    """The network, with its template somewhere in the world."""
    affine = torch.diag(torch.tensor([*[1.5, 2.0, 2.5][: len(size)], 1.0], dtype=torch.float64))
    affine[:-1, -1] = -(torch.tensor(size) - 1) / 2 * affine.diagonal()[:-1] + 1
    network.affine.copy_(affine)
    return network


@both
@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labels"])
def test_files_of_a_template_lie_at_its_place(size, labels, tmp_path):
    network = placed(make_network(size, spread=0.3, labels=labels), size)
    attributes = {"age": 40.5, "sex": "M"}
    files = write_template(tmp_path / "new", network, attributes)
    stem = "template_age-40.5_sex-M"
    names = {"template": f"{stem}.nii.gz", "picture": f"{stem}.png"} | (
        {"label": f"{stem}_label.nii.gz"} if labels else {}
    )
    assert files == {kind: str(tmp_path / "new" / name) for kind, name in names.items()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*names.values(), f"{stem}.json"}
    expected = render(network, attributes)
    image = load_image(files["template"])
    torch.testing.assert_close(image.data, expected[0])
    np.testing.assert_allclose(image.affine, network.affine.numpy(), atol=1e-5)
    if labels:
        written = load_labels(files["label"])
        assert torch.equal(written.data.short(), expected[1])
        assert set(written.data.unique().tolist()) <= set(LABELS)
        np.testing.assert_allclose(written.affine, network.affine.numpy(), atol=1e-5)
    assert json.loads((tmp_path / "new" / f"{stem}.json").read_text()) == {"attributes": attributes}
    assert imread(files["picture"]).std() > 0.05


def test_a_template_without_attributes_has_a_plain_name(tmp_path):
    files = write_template(tmp_path, make_network(SIZES[0], {}), {}, picture=False)
    assert files == {"template": str(tmp_path / "template.nii.gz")}
    assert {path.name for path in tmp_path.iterdir()} == {"template.nii.gz", "template.json"}


def test_names_of_files_are_made_of_any_category(tmp_path):
    network = make_network(SIZES[0], {"group": ["AD/MCI", "control"]})
    for _ in range(2):
        files = write_template(tmp_path, network, {"group": "AD/MCI"}, picture=False)
        assert Path(files["template"]).is_file()


def test_nothing_is_written_of_an_impossible_template(tmp_path):
    with pytest.raises(ValueError, match="the template's attributes are age, sex; given were age"):
        write_template(tmp_path / "new", make_network(SIZES[0]), {"age": 40})
    assert not (tmp_path / "new").exists()


@both
@pytest.mark.parametrize(("name", "values"), [("age", [20.0, 47.5, 75.0]), ("sex", ["F", "M"])])
def test_frames_of_a_sweep_are_single_templates(size, name, values, tmp_path):
    network = placed(make_network(size, spread=0.3, labels=LABELS), size)
    attributes = {"age": 30.0, "sex": "M"}
    files = write_sweep(tmp_path, network, attributes, name, values)
    assert all(Path(path).is_file() for path in files.values())
    names = {"sweep.nii.gz", "sweep_label.nii.gz", "sweep.csv", "sweep.gif"}
    assert {path.name for path in tmp_path.iterdir()} == {Path(path).name for path in files.values()} == names
    image, labels = (nib.load(tmp_path / f"sweep{part}.nii.gz") for part in ("", "_label"))
    assert image.shape == (*size, *[1] * (3 - len(size)), len(values))
    single = write_template(tmp_path / "single", network, {**attributes, name: values[0]}, picture=False)
    np.testing.assert_allclose(image.affine, nib.load(single["template"]).affine)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open(newline="")))
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        expected = render(network, {**attributes, name: value})
        np.testing.assert_allclose(np.asarray(image.dataobj)[..., i].reshape(size), expected[0][0].numpy(), atol=1e-6)
        np.testing.assert_array_equal(np.asarray(labels.dataobj)[..., i].reshape(size), expected[1][0].numpy())
        assert int(row.pop("frame")) == i
        assert {k: float(v) if k == "age" else v for k, v in row.items()} == {**attributes, name: value}


@pytest.mark.parametrize(
    ("attributes", "name", "values", "message"),
    [
        ({"age": 30, "sex": "F"}, "age", [20], "at least two values of age to sweep over, got 1"),
        ({"age": 30, "sex": "F"}, "iq", [1, 2], "given were age, sex, iq"),
        ({"age": 30}, "age", [20, 30], "given were age"),
        ({"age": 30, "sex": "F"}, "sex", ["F", "X"], "expected one of F, M, got X"),
    ],
)
def test_impossible_sweeps_are_refused_and_nothing_is_written(attributes, name, values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_sweep(tmp_path / "new", make_network(SIZES[0]), attributes, name, values)
    assert not (tmp_path / "new").exists()


WORLD = ("RAS", (16, 18, 14), (2.5, 2.5, 2.5))
STORED = ("LIA", (33, 28, 37), (1.2, 1.5, 1.3))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An atlas at a place in the world, and a scan with labels and mask of another orientation, spacing and size."""
    folder = tmp_path_factory.mktemp("world")
    network = make_network(WORLD[1], spread=0.1, labels=LABELS)
    network.affine.copy_(torch.tensor(oriented(*WORLD)))
    affine = oriented(*STORED)
    image = blobs(STORED[1], affine)
    files = {"image": image, "label": (image > 50).astype("u1") * 7, "mask": (image > 20).astype("u1")}
    for name, array in files.items():
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return network, {name: str(folder / f"{name}.nii.gz") for name in files}


def test_a_scan_of_any_grid_lands_on_the_templates(world, tmp_path):
    network, item = world
    loaded = LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F"})
    for key in ("moving", "fixed", "label_moving", "label_fixed", "mask_moving"):
        assert loaded[key].shape == (1, *WORLD[1]), key
    np.testing.assert_allclose(loaded["grid_affine"].numpy(), network.affine.numpy(), atol=1e-5)
    expected = blobs(WORLD[1], network.affine.numpy())
    inside = (slice(3, -3),) * 3
    scaled = scale_intensity(load_image(item["image"]).data).max() / load_image(item["image"]).data.max()
    found = loaded["moving"][0].numpy()[inside]
    assert np.corrcoef(found.ravel(), expected[inside].ravel())[0, 1] > 0.99
    assert np.abs(found - expected[inside] * float(scaled)).mean() < 0.05
    for key, threshold, value in (("label_moving", 50, 7), ("mask_moving", 20, 1)):
        labels, truth = loaded[key][0].numpy(), (expected > threshold) * value
        assert set(np.unique(labels)) == {0, value}
        assert (labels == truth)[inside].mean() > 0.95
    assert (loaded["age"], loaded["sex"]) == (40, "F")


def test_the_template_of_a_scans_attributes_is_its_fixed_image(world, tmp_path):
    network, item = world
    loaded = LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F"})
    image, labels = render(network, {"age": 40, "sex": "F"})
    torch.testing.assert_close(loaded["fixed"], scale_intensity(image))
    assert torch.equal(loaded["label_fixed"].short(), labels)
    assert Path(loaded["fixed_path"]) == tmp_path / "template_age-40_sex-F.nii.gz"
    assert Path(loaded["label_fixed_path"]) == tmp_path / "template_age-40_sex-F_label.nii.gz"
    assert loaded["id"] == "image"
    torch.testing.assert_close(loaded["image"], torch.cat([loaded["moving"], loaded["fixed"]]))


def test_another_label_map_can_be_carried(world, tmp_path):
    network, item = world
    other = torch.full((1, *WORLD[1]), 3, dtype=torch.int16)
    write_image(tmp_path / "other.nii.gz", other, network.affine.numpy())
    load = LoadToTemplated(network, str(tmp_path / "out"), template_label=str(tmp_path / "other.nii.gz"))
    assert (load({**item, "age": 40, "sex": "F"})["label_fixed"] == 3).all()


def test_a_scan_is_read_through_its_affine(world, tmp_path):
    network, item = world
    matrix = np.eye(4)
    matrix[:3, 3] = [2.5, 0, -5]
    write_affine_transform(tmp_path / "shift.tfm", matrix)
    person = {"image": item["image"], "age": 40, "sex": "F"}
    plain = LoadToTemplated(network, str(tmp_path))(person)
    by_item = LoadToTemplated(network, str(tmp_path))({**person, "affine": str(tmp_path / "shift.tfm"), "id": "one"})
    by_setting = LoadToTemplated(network, str(tmp_path), str(tmp_path / "shift.tfm"))(person)
    torch.testing.assert_close(by_item["moving"][:, :-1, :, 2:], plain["moving"][:, 1:, :, :-2], rtol=0, atol=1e-4)
    assert torch.equal(by_item["moving"], by_setting["moving"])
    assert by_item["id"] == "one"
    assert "label_moving" not in by_item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "expected an item with one scan under 'image'"),
        ({"fixed": "other.nii.gz"}, "expected an item with one scan under 'image'"),
        ({"age": None}, "attribute age: expected a number, got None"),
        ({"sex": "X"}, "attribute sex: expected one of F, M, got X"),
    ],
)
def test_items_that_are_no_scan_with_attributes_are_refused(world, tmp_path, change, message):
    network, item = world
    with pytest.raises(ValueError, match=message):
        LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F", **change})


def test_an_item_without_an_attribute_is_refused(world, tmp_path):
    network, item = world
    with pytest.raises(ValueError, match="the template's attributes are age, sex; given were sex"):
        LoadToTemplated(network, str(tmp_path))({**item, "sex": "F"})


def saved(folder, load, item, write=("warped_fixed", "warped_fixed_label")):
    """The item with a smooth random diffeomorphism as its prediction, and what `SavePaird` wrote of it."""
    loaded = load(item)
    velocity = smooth(loaded["fixed"].shape[1:], 1.5)
    batch = list_data_collate([loaded])
    batch["pred"] = {"ddf": integrate_velocity(velocity), "inverse_ddf": integrate_velocity(-velocity)}
    (one,) = decollate_batch(batch)
    return one, SavePaird(str(folder / "out"), write=write)(one)["output_files"]


def test_labels_of_the_template_are_carried_to_the_scans_own_grid(world, tmp_path):
    network, item = world
    load = LoadToTemplated(network, str(tmp_path))
    data, files = saved(tmp_path, load, {**item, "age": 40, "sex": "F"})
    fixed, moving = load_labels(data["label_fixed_path"]), load_image(item["image"])
    inverse = DisplacementField(data["pred"]["inverse_ddf"], Grid(network.affine.numpy(), WORLD[1]))
    expected = resample(fixed.data, fixed.affine, moving.grid, steps=[inverse], mode="nearest")
    written = load_labels(files["warped_fixed_label"])
    assert torch.equal(written.data, expected)
    np.testing.assert_allclose(written.affine, moving.affine, atol=1e-5)
    assert nib.load(files["warped_fixed_label"]).get_data_dtype() == np.int32
    assert set(written.data.unique().tolist()) == set(LABELS)


def test_labels_of_the_template_are_carried_through_the_affine_too(world, tmp_path):
    network, item = world
    matrix = np.eye(4)
    matrix[:3, 3] = [3.0, -2, 4]
    write_affine_transform(tmp_path / "shift.tfm", matrix)
    load = LoadToTemplated(network, str(tmp_path), str(tmp_path / "shift.tfm"))
    data, files = saved(tmp_path, load, {**item, "age": 40, "sex": "F"})
    fixed, moving = load_labels(data["label_fixed_path"]), load_image(item["image"])
    inverse = DisplacementField(data["pred"]["inverse_ddf"], Grid(network.affine.numpy(), WORLD[1]))
    steps = [np.linalg.inv(matrix), inverse]
    expected = resample(fixed.data, fixed.affine, moving.grid, steps=steps, mode="nearest")
    assert torch.equal(load_labels(files["warped_fixed_label"]).data, expected)


def test_without_fixed_labels_none_are_carried(world, tmp_path):
    _, item = world
    pair = {"moving": item["image"], "fixed": item["image"], "label_moving": item["label"]}
    _, files = saved(tmp_path, LoadPaird(3.0), pair)
    assert files.keys() == {"warped_fixed"}


def test_without_an_inverse_no_labels_are_carried(world, tmp_path):
    _, item = world
    pair = {"moving": item["image"], "fixed": item["image"], "label_fixed": item["label"]}
    data, _ = saved(tmp_path, LoadPaird(3.0), pair)
    data["pred"] = {"ddf": data["pred"]["ddf"]}
    files = SavePaird(str(tmp_path / "other"), write=["warped", "warped_fixed_label"])(data)["output_files"]
    assert files.keys() == {"warped"}


# gradient_energy


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5), (1.0, 1.0, 1.0), (0.7, 1.5, 3.0)], ids=str)
def test_energy_of_a_ramp_is_the_square_of_its_slope(spacing):
    size, slopes = (9, 7, 5)[: len(spacing)], torch.tensor([0.3, -1.2, 0.5][: len(spacing)])
    grids = torch.meshgrid(*[torch.arange(n) * s for n, s in zip(size, spacing, strict=True)], indexing="ij")
    ramp = sum(slope * grid for slope, grid in zip(slopes, grids, strict=True))[None, None]
    images = torch.cat([ramp, 2 * ramp, torch.ones_like(ramp)])
    expected = slopes.square().sum() * torch.tensor([1.0, 4, 0], dtype=torch.float64)
    torch.testing.assert_close(gradient_energy(images, spacing_mm=spacing), expected, rtol=1e-4, atol=1e-6)


@both
def test_energy_is_that_within_the_mask(size):
    image = torch.zeros(2, 1, *size)
    image[:, :, 6:] = torch.arange(size[0] - 6.0).view(-1, *[1] * (len(size) - 1)) * 2
    mask = torch.zeros(1, 1, *size)
    mask[:, :, 8:] = 1
    assert gradient_energy(image, mask, spacing_mm=[1.0] * len(size)).tolist() == pytest.approx([4, 4])
    assert gradient_energy(image, 1 - mask, spacing_mm=[1.0] * len(size)).max() < 4


@both
def test_energies_of_channels_are_averaged(size):
    image, spacing = random(2, 3, *size), [1.0] * len(size)
    each = torch.stack([gradient_energy(image[:, i : i + 1], spacing_mm=spacing) for i in range(3)])
    torch.testing.assert_close(gradient_energy(image, spacing_mm=spacing), each.mean(0))


@phantom_sizes
def test_blurring_lowers_the_energy(size):
    image, spacing = phantom_pair(size)["fixed"], [1.0] * len(size)
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    energies = [float(gradient_energy(image, spacing_mm=spacing))]
    for _ in range(3):
        image = pool(image, 3, 1, 1, count_include_pad=False)
        energies.append(float(gradient_energy(image, spacing_mm=spacing)))
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.6 * energies[0]


# Pictures


@phantom_sizes
def test_picture_of_a_template_has_a_row_more_with_labels(size, tmp_path):
    pair, spacing = phantom_pair(size), [1.0] * len(size)
    template_picture(tmp_path / "new" / "plain.png", pair["fixed"][0], spacing_mm=spacing)
    template_picture(tmp_path / "new" / "labels.png", pair["fixed"][0], pair["label_fixed"][0], spacing_mm=spacing)
    plain, labels = (imread(tmp_path / "new" / f"{name}.png") for name in ("plain", "labels"))
    assert plain.std() > 0.05
    assert labels.shape[0] > 1.7 * plain.shape[0]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["labels.png", "plain.png"]


@phantom_sizes
def test_animation_goes_there_and_back(size, tmp_path):
    images = [phantom_pair(size, seed=i)["fixed"][0] for i in range(4)]
    template_animation(
        tmp_path / "new" / "a.gif", images, [f"age {i}" for i in range(4)], spacing_mm=[1.0] * len(size), seconds=0.3
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]
    with Image.open(tmp_path / "new" / "a.gif") as picture:
        assert picture.n_frames == 6
        assert picture.info["duration"] == 300
        frames = []
        for i in range(6):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("L"), dtype=float))
    for there, back in ((1, 5), (2, 4)):
        assert np.abs(frames[there] - frames[back]).mean() < 1
        assert np.abs(frames[there] - frames[0]).mean() > 1


def test_an_animation_of_two_has_two_frames(tmp_path):
    images = [phantom_pair(SIZES[0], seed=i)["fixed"][0] for i in range(2)]
    template_animation(tmp_path / "a.gif", images, ["F", "M"], spacing_mm=[1.0, 1.0])
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 2


def test_images_without_a_heading_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        template_animation(tmp_path / "a.gif", [torch.rand(1, 24, 28)] * 2, ["F"], spacing_mm=[1.0, 1.0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_templates_can_be_drawn(tmp_path, value):
    image = torch.full((1, 16, 18), value)
    template_picture(tmp_path / "p.png", image, torch.zeros(1, 16, 18, dtype=torch.int16), spacing_mm=(1, 1))
    template_animation(tmp_path / "a.gif", [image, image], ["a", "b"], spacing_mm=(1, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"p.png", "a.gif"}


# morphzoo atlas


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Weights of a 2-D atlas of phantoms whose templates change with the attributes; a scan on another grid, labels."""
    folder = tmp_path_factory.mktemp("atlas")
    size = (40, 36)
    torch.manual_seed(0)
    template = ConditionalTemplate(size, ATTRIBUTES, labels=[0, 1, 2, 3, 4], label_stride=2)
    network = AtlasNetwork(template, VoxelMorphUNet(2, half_resolution=True))
    scans = [phantom_pair(size, seed=i, amplitude=1.0) for i in range(6)]
    shares = torch.stack([label_indicators(scan["label_fixed"], range(5))[0].float() for scan in scans]).mean(0)
    template.initialize(torch.cat([scan["fixed"] for scan in scans]).mean(0, keepdim=True), shares[None])
    template.encoder.fit(PEOPLE)
    torch.nn.init.normal_(template.last[0].weight, std=0.2)
    affine = torch.eye(3, dtype=torch.float64)
    affine[:2, 2] = -(torch.tensor(size) - 1) / 2
    network.affine.copy_(affine)
    torch.save(network.state_dict(), folder / "model.pt")
    path = Path(write_phantom_scans(folder, 2, (30, 27), spacing_mm=4 / 3, axcodes="LPS", num_validation=0))
    item = json.loads(path.read_text())["training"][0]
    return network, folder / "model.pt", path.parent / item["image"], path.parent / item["label"]


def atlas_command(atlas, output, *words, scan=False):
    scans = [atlas[2], "--affine", "none", "--label", atlas[3]] if scan else []
    return run("atlas", *scans, "-o", output, "--weights", atlas[1], *words)


def test_the_command_renders_a_template(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "sex=F,age=40") is None
    names = {f"template_age-40_sex-F{ending}" for ending in (".nii.gz", "_label.nii.gz", ".png", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == names
    image, labels = render(atlas[0], {"age": 40, "sex": "F"})
    torch.testing.assert_close(load_image(tmp_path / "template_age-40_sex-F.nii.gz").data, image)
    assert torch.equal(load_labels(tmp_path / "template_age-40_sex-F_label.nii.gz").data.short(), labels)
    assert str(tmp_path / "template_age-40_sex-F.nii.gz") in capsys.readouterr().out


def test_a_number_that_is_not_given_is_the_training_datas_mean(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "sex=F") is None
    assert (tmp_path / "template_age-48_sex-F.nii.gz").is_file()
    assert "age: not given, the training data's mean 48 is taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sweep", "given", "values", "single"),
    [
        ("age=20:70:3", "sex=M", [20.0, 45.0, 70.0], "template_age-48_sex-M.nii.gz"),
        ("sex=F:M", "age=30", ["F", "M"], "template_age-30_sex-F.nii.gz"),
    ],
)
def test_the_command_sweeps_over_an_attribute(atlas, tmp_path, sweep, given, values, single):
    assert atlas_command(atlas, tmp_path, "--attributes", given, "--sweep", sweep) is None
    assert (tmp_path / single).is_file()
    image = np.asarray(nib.load(tmp_path / "sweep.nii.gz").dataobj)
    assert image.shape == (40, 36, 1, len(values))
    name, attributes = sweep.partition("=")[0], {"age": 30.0, "sex": "M"}
    for i, value in enumerate(values):
        expected = render(atlas[0], {**attributes, name: value})[0][0].numpy()
        np.testing.assert_allclose(image[..., 0, i], expected, atol=1e-5)
    assert np.abs(image[..., 0] - image[..., -1]).max() > 0.01
    with Image.open(tmp_path / "sweep.gif") as picture:
        assert picture.n_frames == 2 * len(values) - 2


def test_the_command_registers_a_scan_and_carries_the_labels_to_it(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "age=40,sex=F", "--optimize", 15, scan=True) is None
    folder = tmp_path / atlas[2].name.split(".")[0]
    names = {path.name for path in folder.iterdir()}
    wanted = {"warped", "warped_label", "warped_fixed", "warped_fixed_label", "forward_field", "inverse_field"}
    assert {f"{name}.nii.gz" for name in wanted} | {"metrics.json", "picture.png"} <= names
    own, theirs = load_image(atlas[2]), load_image(tmp_path / "template_age-40_sex-F.nii.gz")
    for name, expected in (("warped_fixed", own), ("warped_fixed_label", own), ("warped", theirs)):
        written = nib.load(folder / f"{name}.nii.gz")
        assert written.shape[:2] == expected.file_shape[:2], name
        np.testing.assert_allclose(written.affine, nib.load(expected.path).affine, atol=1e-5)
    carried, truth = load_labels(folder / "warped_fixed_label.nii.gz").data, load_labels(atlas[3]).data
    placed_only = resample(
        load_labels(tmp_path / "template_age-40_sex-F_label.nii.gz").data, theirs.affine, own.grid, mode="nearest"
    )
    before, after = (float(mean_dice(labels[None].short(), truth[None].short())) for labels in (placed_only, carried))
    assert after > max(0.6, before + 0.02)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.02
    assert metrics["ncc_after"] > metrics["ncc_before"]
    assert f"results in {folder}" in capsys.readouterr().out


def test_without_refinement_the_networks_field_is_taken(atlas, tmp_path):
    assert atlas_command(atlas, tmp_path, "--attributes", "age=40,sex=F", scan=True) is None
    (path,) = tmp_path.glob("*/metrics.json")
    assert json.loads(path.read_text())["displacement_mean_mm"] < 0.01


@pytest.fixture(scope="module")
def single_atlas(tmp_path_factory):
    """Weights of a 2-D template of one phantom, without attributes and labels."""
    torch.manual_seed(0)
    network = AtlasNetwork(ConditionalTemplate((40, 36)), VoxelMorphUNet(2, half_resolution=True))
    network.template.initialize(phantom_pair((40, 36))["fixed"])
    network.affine[:2, 2] = -(torch.tensor([40, 36]) - 1) / 2
    path = tmp_path_factory.mktemp("single") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def test_an_atlas_without_attributes_and_labels_is_rendered_and_registered(atlas, single_atlas, tmp_path):
    words = ["atlas", atlas[2], "-o", tmp_path, "--weights", single_atlas, "--affine", "none"]
    assert run(*words) is None
    files = {"template.nii.gz", "template.png", "template.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == files
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "warped_fixed.nii.gz").is_file()
    assert not (folder / "warped_fixed_label.nii.gz").exists()


def test_an_atlas_whose_categories_are_numbers_is_rendered(tmp_path):
    torch.manual_seed(0)
    network = AtlasNetwork(ConditionalTemplate((40, 36), {"stage": [1, 2]}), VoxelMorphUNet(2, half_resolution=True))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    words = ["atlas", "-o", tmp_path / "out", "--weights", tmp_path / "model.pt"]
    assert run(*words, "--attributes", "stage=2", "--sweep", "stage=1:2") is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--attributes", "age=40,sex=F,iq=3"], "the template's attributes are age, sex; given were age, sex, iq"),
        (["--attributes", "age=40"], "the template's attributes are age, sex; given were age"),
        (["--attributes", "age=40,sex=X"], "attribute sex: expected one of F, M, got X"),
        (["--attributes", "age=old,sex=F"], "attribute age: expected a number, got 'old'"),
        (["--attributes", "age"], "--attributes: expected name=value"),
        (["--attributes"], "--attributes: expected name=value"),
        (["--attributes", "sex=F", "--sweep", "age=20:80"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age=20:80:1"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age=20:old:3"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep"], "--sweep"),
        (["--attributes", "sex=F", "--sweep", "iq=1:2:3"], "--sweep: the template's attributes are age, sex"),
        (["--attributes", "age=40", "--sweep", "sex=F:X"], "attribute sex: expected one of F, M, got X"),
        (["--attributes", "age=40", "--sweep", "sex=F"], "at least two values of sex"),
        (["--attributes", "sex=F", "--spaccing", 3], "conditional_atlas has no setting 'spaccing'"),
        (["--attributes", "sex=F", "--weights", "none.pt"], "none.pt: bundle conditional_atlas has no weights there"),
        (
            ["--attributes", "sex=F", "--bundle", "voxelmorph"],
            "voxelmorph has no template; --bundle conditional_atlas has",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_words_are_refused_in_one_line(atlas, tmp_path, words, part):
    message = atlas_command(atlas, tmp_path, *words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("sweep*"))


def test_weights_of_another_bundle_are_refused_in_one_line(atlas, tmp_path):
    torch.save(VoxelMorphUNet(2).state_dict(), tmp_path / "model.pt")
    message = run("atlas", "-o", tmp_path, "--weights", tmp_path / "model.pt")
    assert message.startswith(f"morphzoo: error: {tmp_path / 'model.pt'}: these are not the weights of an atlas")
    assert "\n" not in message


def test_a_missing_scan_is_named_before_anything_is_written(atlas, tmp_path):
    words = ["-o", tmp_path / "out", "--weights", atlas[1], "--attributes", "age=40,sex=F"]
    message = run("atlas", tmp_path / "none.nii.gz", *words)
    assert message.startswith("morphzoo: error: ")
    assert "none.nii.gz: there is no such file" in message
    assert not list((tmp_path / "out").glob("*"))


def test_a_pair_is_not_for_an_atlas(atlas, tmp_path):
    words = ["-o", tmp_path, "--bundle", "conditional_atlas", "--weights", atlas[1]]
    message = run("register", atlas[2], atlas[2], *words)
    assert message.startswith("morphzoo: error: ")
    assert message.endswith("registers single scans to its template, not pairs: morphzoo atlas SCAN")


def test_scans_of_a_list_are_evaluated_with_their_attributes(atlas, tmp_path, capsys):
    image, label = (str(path) for path in atlas[2:])
    scans = [{"id": sex, "image": image, "label": label, "age": 40, "sex": sex} for sex in "FM"]
    (tmp_path / "list.json").write_text(json.dumps({"test": scans}))
    words = ["evaluate", tmp_path / "list.json", "-o", tmp_path / "out", "--section", "test"]
    words += ["--bundle", "conditional_atlas", "--weights", atlas[1]]
    assert run(*words) is None
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["num_pairs"] == 2
    assert summary["summary"]["dice_after"]["mean"] > 0.5
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"F", "M"}


def test_pairs_of_a_list_are_not_for_an_atlas(atlas, tmp_path):
    image = str(atlas[2])
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": [{"moving": image, "fixed": image}]}))
    words = ["--bundle", "conditional_atlas", "--weights", atlas[1]]
    message = run("evaluate", tmp_path / "list.json", "-o", tmp_path / "out", *words)
    assert message.startswith("morphzoo: error: section 'validation_pairs' of ")
    assert message.endswith("holds pairs of moving and fixed, expected single scans")
