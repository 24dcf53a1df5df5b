"""The program behind the figures of the SynthMorph bundle."""

import pytest
import torch

from benchmarks.synthmorph import inflate
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


@pytest.mark.parametrize("half_resolution", [False, True])
def test_inflated_network_works_slice_by_slice(tmp_path, half_resolution):
    torch.manual_seed(0)
    flat, solid = (VoxelMorphUNet(dims, half_resolution=half_resolution, flow_std=0.1) for dims in (2, 3))
    torch.save(flat.state_dict(), tmp_path / "2d.pt")
    inflate(tmp_path / "2d.pt", tmp_path / "3d.pt")
    solid.load_state_dict(torch.load(tmp_path / "3d.pt", weights_only=True))
    image = torch.rand(1, 2, 32, 48)
    with torch.no_grad():
        expected, field = flat(image), solid(image.unsqueeze(-1).expand(-1, -1, -1, -1, 16))
    for level in range(field.shape[-1]):
        torch.testing.assert_close(field[:, :2, ..., level], expected, atol=1e-5, rtol=1e-4)
    assert not field[:, 2].any()
