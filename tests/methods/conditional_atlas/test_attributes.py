"""Attributes of a template: standardised, named, checked, kept with the weights."""

import numpy as np
import pytest
import torch
from methods.conditional_atlas.cases import ATTRIBUTES, PEOPLE, SOME, random

from custom_components.methods.conditional_atlas.attributes import AttributeEncoder


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


@pytest.mark.parametrize("value", [2, "2", 2.0, torch.tensor(2)], ids=["int", "text", "float", "tensor"])
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


@pytest.mark.parametrize("kind", ["number", ["F"], ["F", "F"], [], "FM", 5, None], ids=str)
def test_kinds_that_are_neither_numeric_nor_categories_are_refused(kind):
    with pytest.raises(ValueError, match="attribute 'x': expected 'numeric' or a list of categories"):
        AttributeEncoder({"age": "numeric", "x": kind})


def test_scale_and_range_of_the_attributes_travel_with_the_weights():
    encoder, other = AttributeEncoder(ATTRIBUTES), AttributeEncoder(ATTRIBUTES)
    encoder.fit(PEOPLE)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(SOME), encoder(SOME))
    assert other.outside(torch.tensor([90.0, 0])) == ["age 90 (trained from 20 to 75)"]
