"""The pictures of docs/concepts.md are drawn, and what the page says of the functions is so."""

from __future__ import annotations

import torch

from benchmarks.concept_pictures import blob, main, velocity
from custom_components.fields import compose, integrate_velocity, warp


def test_the_pictures_are_drawn(tmp_path):
    main([str(tmp_path)])
    names = {"concepts_pull_back.png", "concepts_composition.png", "concepts_flow.png"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_the_page_says_of_compositions():
    inner, outer = (integrate_velocity(velocity(seed, 3.0)) for seed in (3, 20))
    at_once = warp(blob(), compose(outer, inner))
    in_turn = warp(warp(blob(), outer), inner)
    wrong = warp(warp(blob(), inner), outer)
    assert (at_once - in_turn).abs().mean() < 0.3 * (at_once - wrong).abs().mean()
    identity = compose(integrate_velocity(velocity(3, 3.0)), integrate_velocity(-velocity(3, 3.0)))
    assert identity[..., 8:-8, 8:-8].abs().max() < 0.1
    assert torch.isfinite(identity).all()
