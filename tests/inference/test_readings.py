"""A search on a GPU reads its losses every ten iterations, and finds what it finds on the CPU."""

import math

import pytest
import torch

from benchmarks.waits import Waits
from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.readings import Readings
from custom_components.inference.refiner import refiner

PAIR = phantom_pair((24, 28, 20), seed=1)


def found_on(device, **settings) -> torch.Tensor:
    search = refiner(StationaryVelocity(), **settings)
    return search(*[PAIR[key].to(device) for key in ("moving", "fixed")])


def read(readings: Readings, loss: float, device, number: int, last: bool = False) -> list[int]:
    readings.add(number, torch.full((), loss, device=device), torch.full((), loss / 2, device=device))
    return list(readings.read(at_last=last))


@pytest.mark.parametrize("iterations", [[12], "auto"], ids=["a number", "as many as it takes"])
def test_the_same_is_found_with_fewer_readings(iterations):
    settings = {"iterations": iterations, "levels": [1]}
    with Waits() as waits:
        on_device = found_on(waits.device, **settings)
    readings = sum(count for place, count in waits.places.items() if ": readings.py" in place)
    assert readings == 2
    if iterations == "auto":  # it may end some iterations later, but keeps the best of them
        assert (on_device - found_on("cpu", **settings)).abs().max() < 0.5
    else:
        assert torch.equal(on_device, found_on("cpu", **settings))


def test_an_iteration_waits_for_nothing():
    counts = []
    for iterations in (11, 19):
        with Waits() as waits:
            found_on(waits.device, iterations=[iterations], levels=[1], similarity="lncc")
        counts.append(waits.total)
        assert not waits.mixed
    assert counts[0] == counts[1]


def test_values_on_the_cpu_are_read_at_once():
    readings = Readings(2)
    assert [read(readings, float(n), "cpu", n) for n in (1, 2, 3)] == [[1], [2], [3]]
    assert (readings.losses, readings.similarities) == ([0.5, 1.0, 1.5], [0.5, 1.0, 1.5])


def test_values_on_a_device_are_read_after_ten_iterations_and_after_the_last():
    readings = Readings(1)
    with Waits() as waits:
        seen = [read(readings, float(n), waits.device, n, last=n == 23) for n in range(1, 24)]
    assert [numbers for numbers in seen if numbers] == [[*range(1, 11)], [*range(11, 21)], [21, 22, 23]]
    assert readings.losses == [float(n) for n in range(1, 24)]


def test_what_another_objective_said_is_forgotten_unread():
    readings = Readings(1)
    with Waits() as waits:
        read(readings, 1.0, waits.device, 1)
        readings.clear()
        read(readings, 2.0, waits.device, 2, last=True)
    assert readings.losses == [2.0]


def test_a_loss_on_a_device_that_is_not_finite_is_found_with_its_iteration():
    search = refiner(StationaryVelocity(), iterations=[12], levels=[1], similarity="lncc")
    loss, calls = search.loss.forward, iter(range(100))
    search.loss.forward = lambda pred, batch: loss(pred, batch) * (math.nan if next(calls) == 5 else 1.0)
    with Waits() as waits, pytest.raises(RuntimeError, match="became nan in iteration"):
        search(*[PAIR[key].to(waits.device) for key in ("moving", "fixed")])
