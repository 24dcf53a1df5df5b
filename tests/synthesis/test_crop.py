"""Cropped fields of view."""

import torch
from synthesis.cases import both, textured

from custom_components.synthesis.crop import crop_field_of_view


@both
def test_cropping_sets_the_ends_of_the_axes_to_0(size):
    image = 1 + textured(size)
    share = torch.zeros(2, len(size), 2)
    assert torch.equal(crop_field_of_view(image, share), image)
    first, last = 4, 3
    share[1, 0] = torch.tensor([first, last]) / size[0]
    cropped = crop_field_of_view(image, share)
    assert torch.equal(cropped[0], image[0])
    assert torch.equal(cropped[1, :, first:-last], image[1, :, first:-last])
    assert not cropped[1, :, :first].any()
    assert not cropped[1, :, -last:].any()
