"""Operations and bytes of a call, and its distance to the roofline."""

import torch
from torch import nn

from benchmarks import gpu_peers
from benchmarks.roofline import Work, peak_of, shares, work
from custom_components.fields import warp


def test_a_product_reads_its_factors_and_writes_its_result():
    a, b = torch.rand(20, 30), torch.rand(30, 40)
    assert work(lambda: a @ b) == Work(2 * 20 * 30 * 40, 4 * (20 * 30 + 30 * 40 + 20 * 40), 1)


def test_the_gradient_of_a_convolution_counts_twice():
    layer, image = nn.Conv3d(2, 4, 3, padding=1, bias=False), torch.rand(1, 2, 6, 6, 6, requires_grad=True)
    forward = 2 * 6**3 * 2 * 4 * 27
    assert work(lambda: layer(image)).flop == forward
    assert work(lambda: layer(image).sum().backward()).flop == 3 * forward


def test_views_are_free_and_repeated_numbers_are_read_once():
    x = torch.rand(10)
    assert work(lambda: x.view(2, 5).T[0].unsqueeze(0)) == Work(0, 0, 0)
    assert work(lambda: x.expand(100, 10) + 1).bytes == 40 + 4000


def test_a_call_is_held_against_what_takes_longer():
    row = shares(Work(10**12, 10**9, 7), 0.5, product=1e13, copy=1e11, peak=20.0)
    assert row["times_roofline"] == 5  # 0.1 s for the operations, 0.01 s for the bytes
    assert (row["matrix_share"], row["memory_share"], row["peak_share"]) == (0.2, 0.02, 0.1)
    assert shares(Work(0, 10**9, 7), 0.02, product=1e13, copy=1e11)["times_roofline"] == 2
    assert "peak_share" not in shares(Work(1, 1, 1), 1, product=1, copy=1)


def test_peaks_are_those_of_known_cards():
    assert peak_of("NVIDIA A100-SXM4-80GB", "bfloat16") == 2 * peak_of("NVIDIA A100-SXM4-80GB", "float32")
    assert peak_of("NVIDIA H100 PCIe", "bfloat16") is None


def test_a_peer_that_lacks_something_is_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "half_there.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not gpu_peers.installed("half_there")
    assert "not_there_at_all" in capsys.readouterr().out
    assert not gpu_peers.installed("nowhere_to_be_found")


def test_a_peer_s_warp_gives_our_image():
    torch.manual_seed(0)
    moving, fixed, field = torch.rand(1, 1, 12, 12, 12), torch.rand(1, 1, 12, 12, 12), torch.randn(1, 3, 12, 12, 12)
    cases = gpu_peers.operations(moving, fixed, field)
    torch.testing.assert_close(cases["MONAI warp"](), warp(moving, field), rtol=1e-4, atol=1e-4)
