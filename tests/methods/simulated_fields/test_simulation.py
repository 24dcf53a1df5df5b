"""Simulated pairs: the known field is the answer, and nothing that could not be seen counts."""

import pytest
import torch

from custom_components.data.batches import SynthesizedBatch
from custom_components.data.phantoms import phantom_pair
from custom_components.fields import compose, identity_grid, invert, jacobian_determinant, warp
from custom_components.methods.simulated_fields.fields import RandomFields
from custom_components.methods.simulated_fields.scans import ScanLook, SimulatedScans
from custom_components.methods.simulated_fields.simulation import SimulatedPairs, known_answers, make_pair
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities

SIZES = [(48, 40), (32, 28, 24)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blob(size, centre, sd=3.0):
    grid = identity_grid(size, dtype=torch.float64)
    middle = torch.tensor(centre, dtype=torch.float64).view(-1, *[1] * len(size))
    return torch.exp(-(grid - middle).square().sum(0) / (2 * sd**2))[None, None]


def shift(size, voxels):
    field = torch.zeros(1, len(size), *size, dtype=torch.float64)
    field[:, 0] = voxels
    return field


def random_field(size, seed=0, **settings):
    fields = RandomFields((16, 8), (0.3, 0.2), vary=False, **settings)
    return fields(fields.draw(2, size, seeded(seed)), size).double()


class Plain:
    """Label maps as images, and scans as they are."""

    def draw(self, batch, size, generator):
        return torch.zeros(batch)

    def __call__(self, source, draw):
        return source.float()


@both
def test_a_blob_that_lies_three_voxels_further_in_moving_has_a_known_shift_of_three(size):
    centre = [n / 2 for n in size]
    moving, fixed, inside = make_pair(blob(size, centre), shift(size, 0), shift(size, 3))
    torch.testing.assert_close(fixed[inside], blob(size, [centre[0] - 3, *centre[1:]])[inside])
    torch.testing.assert_close(moving, blob(size, centre), atol=1e-12, rtol=0)
    assert inside[0, 0, : size[0] - 3].all()
    assert not inside[0, 0, size[0] - 3 :].any()  # there the known field leaves the moving image


@both
def test_moving_pulled_back_along_the_known_field_is_fixed(size):
    source = blob(size, [n / 2 for n in size], 5.0)
    moving, fixed, inside = make_pair(source, random_field(size, 1), random_field(size, 2))
    error = (warp(moving, random_field(size, 2)) - fixed).abs()[inside].max()
    assert error < 0.02  # linear interpolation of moving
    assert (moving - fixed).abs().max() > 10 * error


@both
def test_the_swapped_pair_is_answered_by_the_inverse_and_not_by_the_negative(size):
    source, known = blob(size, [n / 2 for n in size], 5.0), random_field(size, 2)
    moving, fixed, _ = make_pair(source, shift(size, 0), known)
    inverse, residual = invert(known)
    assert residual.max() < 0.05
    inner = (..., *[slice(8, -8)] * len(size))
    errors = [(warp(fixed, field) - moving).abs()[inner].max() for field in (inverse, -known)]
    assert errors[0] < 0.03
    assert errors[1] > 2 * errors[0]


@both
def test_each_image_is_read_from_its_source_once(size):
    """Else one image is blurrier than the other, and a network learns the blur: here no voxel is mixed at all."""
    source = torch.rand(1, 1, *size, generator=seeded(), dtype=torch.float64)
    moving, fixed, _ = make_pair(source, shift(size, 0.5), shift(size, -0.5))
    torch.testing.assert_close(fixed, source, atol=1e-12, rtol=0)
    assert moving.var() < 0.7 * source.var()


@both
def test_fields_of_the_defaults_shares_do_not_fold(size):
    fields = RandomFields((16, 8, 4), (0.36, 0.24, 0.16), vary=False)
    assert jacobian_determinant(fields(fields.draw(8, size, seeded()), size)).min() > 0


@pytest.mark.parametrize(("size", "sd"), [((128, 128), 0.2768), ((64, 64, 64), 0.1916)], ids=["2d", "3d"])
def test_fields_are_as_large_as_b_splines_of_uniform_control_points_are(size, sd):
    fields = RandomFields((8,), (0.5,), vary=False)
    found = fields(fields.draw(4, size, seeded()), size).std()
    assert found == pytest.approx(4 * sd, rel=0.03)


@both
def test_scales_are_applied_one_after_another_the_finest_first(size):
    fields = RandomFields((16, 8), (0.3, 0.3))
    draw = fields.draw(1, size, seeded())
    coarse, fine = (RandomFields((s,), (0.3,))({"0": draw[k]}, size) for s, k in ((16, "0"), (8, "1")))
    torch.testing.assert_close(fields(draw, size), compose(coarse, fine))


def phantom_maps(size):
    pairs = [phantom_pair(size, seed=seed) for seed in (3, 4)]
    return [torch.cat([pair[f"label_{side}"] for pair in pairs]).to(torch.int16) for side in ("moving", "fixed")]


def simulated(size, maps, **settings):
    fields = RandomFields((16,), (0.45,), vary=False)
    synthesis = SimulatedPairs(fields, settings.pop("look", Plain()), place=fields, **settings)
    return synthesis(*maps, synthesis.draw(maps[0].shape[0], size, seeded()))


def follows(moving, fixed, ddf, mask):
    """Whether labels agree better along a field, but for what two roundings to the nearest voxel cost."""
    before, after = (float((one != fixed)[mask].float().mean()) for one in (moving, warp(moving, ddf, mode="nearest")))
    return after < 0.6 * before


@both
def test_label_maps_follow_the_known_field(size):
    made = simulated(size, phantom_maps(size), inter_subject=False, look=RandomContrast(LabelIntensities(8)))
    mask = made["known_mask"]
    assert made["moving"].shape == made["fixed"].shape == (2, 1, *size)
    assert follows(made["label_moving"], made["label_fixed"], made["known_ddf"], mask)
    assert not mask[made["label_fixed"] == 0].any()


@both
def test_two_answers_in_a_row_lead_through_another_person(size):
    """With known displacements of all images from one person, both answers are known, and so is their composition."""
    made = simulated(size, phantom_maps(size))
    m, m_too, f = made["moving"].split(2)
    f_self, f_known, m_again = made["fixed"].split(2)
    assert torch.equal(m, m_too)
    assert torch.equal(m, m_again)
    assert not torch.equal(f_self, f_known)
    own, known = made["known_ddf"].split(2)
    assert follows(m, f_self, own, made["known_mask"][:2])
    assert follows(f, f_known, known, made["known_mask"][2:])


@both
def test_answers_are_composed_in_the_order_that_leads_back(size):
    """Through any third frame: there = id -> m of f', back = m -> f, one after the other the known field."""
    back, known = random_field(size, 1), random_field(size, 2)
    inverse, _ = invert(back, tolerance=1e-4, max_iterations=200)
    there = compose(inverse, known)  # back o there = known
    answers = known_answers(torch.cat([random_field(size, 3), there, back]), 4)
    middle = (..., *[slice(8, n - 8) for n in size])
    torch.testing.assert_close(answers[2:][middle], known[middle], atol=0.15, rtol=0)
    assert torch.equal(answers[:2], random_field(size, 3))


def test_answers_that_are_too_few_are_refused():
    with pytest.raises(ValueError, match="expected answers for 4 known fields, got 3"):
        known_answers(torch.zeros(3, 2, 8, 8), 4)


@both
def test_a_draw_can_be_replayed(size):
    first, second = (simulated(size, phantom_maps(size)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@both
def test_scans_are_shown_with_other_intensities_each_time_and_their_mask_counts(size):
    pair = phantom_pair(size, seed=3)
    mask = (torch.arange(size[0]) < size[0] // 2).view(1, 1, -1, *[1] * (len(size) - 1)).expand(1, 1, *size)
    scans = {"moving": pair["moving"], "fixed": pair["fixed"], "mask_moving": mask, "mask_fixed": mask}
    fields = RandomFields((16, 8), (0.1, 0.1))
    batch = SimulatedScans(SimulatedPairs(fields, ScanLook(), flip=0.0, inter_subject=False), seed=0)
    image, targets, _, _ = batch(scans)
    assert image.shape == (1, 2, *size)
    assert image.min() >= 0
    assert image.max() <= 1
    exact = warp(pair["moving"], targets["known_ddf"])
    assert (image[:, 1:] - exact).abs().mean() > 0.005
    assert not targets["known_mask"][:, :, size[0] // 2 + 6 :].any()
    assert targets["known_mask"][:, :, 6 : size[0] // 2 - 6].float().mean() > 0.9


def test_a_batch_of_two_people_has_three_pairs():
    maps = phantom_maps((32, 28, 24))
    batch = SynthesizedBatch(SimulatedPairs(RandomFields((16,), (0.3,)), Plain()), seed=0)
    image, targets, _, _ = batch({"label_moving": maps[0], "label_fixed": maps[1]})
    assert image.shape == (6, 2, 32, 28, 24)
    assert targets["known_ddf"].shape == (4, 3, 32, 28, 24)
    assert targets["label_fixed"].shape == (6, 1, 32, 28, 24)
