"""Single scans with attributes, and scans rendered from label maps."""

import pytest
import torch
from methods.conditional_atlas.cases import PEOPLE, SIZES, alone, both, fitted, label_maps, people, random
from monai.data import DataLoader

from custom_components.data.batches import SynthesizedBatch
from custom_components.methods.conditional_atlas.attributes import AttributeEncoder
from custom_components.methods.conditional_atlas.batches import AtlasBatch, SynthesizeScan
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities


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


@both
def test_a_scan_is_rendered_from_its_label_map_where_it_lies(size):
    labels, contrast = label_maps(size), RandomContrast(LabelIntensities(5))
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
    contrast = RandomContrast(LabelIntensities(5))
    plain, grouped = SynthesizeScan(contrast), SynthesizeScan(contrast, groups={"1": 7, 3: 7, "4": 2})
    draw = plain.draw(2, size, torch.Generator().manual_seed(0))
    made, expected = grouped(labels, draw), torch.zeros_like(labels)
    expected[(labels == 1) | (labels == 3)] = 7
    expected[labels == 4] = 2
    assert torch.equal(made["label_moving"], expected)
    assert torch.equal(made["moving"], plain(labels, draw)["moving"])


@both
def test_one_map_alone_goes_through_the_batch_as_it_does_directly(size):
    labels, synthesis = label_maps(size), SynthesizeScan(RandomContrast(LabelIntensities(5)), groups={"2": 1})
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
    synthesized = SynthesizedBatch(SynthesizeScan(RandomContrast(LabelIntensities(5))), seed=0)
    image, targets, _, options = AtlasBatch(fitted(), synthesized)(batch)
    assert torch.equal(image, targets["moving"])
    assert torch.equal(options["attributes"], PEOPLE)
