"""Networks of a distributed training."""

from torch import nn

from custom_components.networks.parallel import is_distributed, unwrap


def test_a_network_comes_out_of_its_wrapper():
    network = nn.Linear(1, 1)
    assert unwrap(nn.DataParallel(network)) is network


def test_what_has_no_wrapper_stays_as_it_is():
    """Also a network that happens to have a part of the wrapper's name."""
    network = nn.Sequential()
    network.module = nn.Linear(1, 1)
    assert unwrap(network) is network
    assert unwrap(None) is None


def test_a_process_alone_is_not_distributed():
    assert not is_distributed()
