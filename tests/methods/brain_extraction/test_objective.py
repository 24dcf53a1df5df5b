"""What the segmentation network learns."""

import pytest
import torch

from custom_components.methods.brain_extraction.objective import _LEAST, SegmentationLoss, segmentation_score


def example(number=6, missing=(3,)):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, number, 6, 5, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(number, (2, 1, 6, 5, 4), generator=generator)
    for one in missing:
        classes[classes == one] = 0
    return logits, classes


@pytest.mark.parametrize("missing", [(), (3,), (1, 2, 3, 4, 5)], ids=str)
def test_the_loss_is_cross_entropy_and_the_log_dice_of_structures_that_occur(missing):
    logits, classes = example(missing=missing)
    logits.requires_grad_()
    pred = {"logits": logits}
    loss = SegmentationLoss(dice_weight=0.5, stride=1)(pred, {"label_moving": classes})
    shares, ones = logits.float().softmax(1), torch.nn.functional.one_hot(classes[:, 0], 6).movedim(-1, 1)
    entropy = -shares.log()[ones > 0].mean()
    dice = 2 * (shares * ones).sum((0, 2, 3, 4)) / (shares + ones).sum((0, 2, 3, 4))
    found = dice[[k for k in range(1, 6) if k not in missing]]
    expected = entropy - 0.5 * ((found + _LEAST).log().mean() if len(found) else 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (loss, expected)))
    assert float(pred["terms"]["dice"]) == pytest.approx(float(found.detach().mean()) if len(found) else 0)


def test_the_score_is_the_dice_of_the_most_likely_classes():
    logits, classes = example()
    best = logits.argmax(1, keepdim=True)
    pairs = [((best == k).double(), (classes == k).double()) for k in (1, 2, 4, 5)]
    expected = sum(2 * (a * b).sum() / (a + b).sum() for a, b in pairs) / 4
    score = segmentation_score({"pred": {"logits": logits}, "label": {"label_moving": classes}})
    assert float(score) == pytest.approx(float(expected))
