"""The atlas network and the running mean of its displacements."""

import os

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
    random,
    template_inferer,
)
from support import oriented

from custom_components.losses.similarity import MSE
from custom_components.methods.conditional_atlas.network import MeanStream
from custom_components.methods.conditional_atlas.objective import TemplateLoss


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
    inferer = template_inferer(mean_stream=stream)
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
    torch.multiprocessing.start_processes(atlas_process, (str(folder),), nprocs=2, start_method="fork")
    return folder


@pytest.mark.slow
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
