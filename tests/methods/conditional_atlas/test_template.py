"""A template of attributes: how it starts, what it is made of, what its weights say."""

import pytest
import torch
from methods.conditional_atlas.cases import (
    ATTRIBUTES,
    LABELS,
    PEOPLE,
    SIZES,
    SOME,
    all_sizes,
    both,
    differs,
    make_network,
    make_template,
    random,
)

from custom_components.methods.conditional_atlas.template import ConditionalTemplate, template_settings
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


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
