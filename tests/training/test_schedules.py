"""Numbers that change with the epoch."""

import pytest
from ignite.engine import Engine

from custom_components.methods.avsm.objective import AffineLoss
from custom_components.training.schedules import Schedule, falling_weight


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
