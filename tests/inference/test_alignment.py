"""Pre-alignment in the world by a network."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.cases import Force
from torch import nn

from custom_components.data.phantoms import phantom_pair, write_phantom_scans
from custom_components.inference.alignment import NetworkAligner
from custom_components.networks.affine_keypoints import AffineKeypointNetwork
from custom_components.space import load_image
from custom_components.transforms.load import LoadPaird


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPR"])
def test_an_aligner_turns_the_networks_answer_into_a_world_matrix(axcodes, tmp_path):
    """The network finds a shift of a tenth of the grid along the first axis, on images about their centres of mass."""
    data = np.zeros((20, 24, 18), np.float32)
    data[6:14, 8:16, 5:12] = 1
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    volumes = []
    for name, origin in (("moving", 30.0), ("fixed", -10.0)):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = origin
        image = nib.Nifti1Image(data, affine).as_reoriented(to_file)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        volumes.append(load_image(tmp_path / f"{name}.nii.gz"))

    seen = []

    class Shift(nn.Module):
        def forward(self, image):
            seen.append(image)
            matrix = torch.eye(3, 4)[None].clone()
            matrix[0, 0, 3] = 0.2
            return matrix

    aligner = NetworkAligner(Shift(), spacing=4.0, size=(21, 21, 21))
    matrix = aligner(volumes[1], volumes[0])
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, 1])
    expected = np.eye(4)
    expected[:3, 3] = [40 + 0.2 * 10 * 4, 40, 40]
    np.testing.assert_allclose(matrix, expected, atol=1e-4)
    with pytest.raises(ValueError, match="the affine network is 2-D"):
        NetworkAligner(Shift(), 4.0, (21, 21))(volumes[1], volumes[0])


def test_an_aligner_reads_its_weights_at_the_first_call(tmp_path):
    images = write_phantom_scans(tmp_path, 4, (24, 24, 24), num_validation=0)
    volumes = [load_image(path) for path in sorted(Path(images).parent.glob("images/*"))[:2]]
    torch.manual_seed(0)
    network, other = AffineKeypointNetwork(3, (4, 8), 1, 8), AffineKeypointNetwork(3, (4, 8), 1, 8)
    torch.save(other.state_dict(), tmp_path / "affine.pt")
    aligner = NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "affine.pt")
    np.testing.assert_allclose(aligner(*volumes), NetworkAligner(other, 1.5, (16, 16, 16))(*volumes), atol=1e-6)
    with pytest.raises(FileNotFoundError, match="no weights of the affine network"):
        NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "none.pt")(*volumes)
    torch.save(Force().state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not weights of this affine network"):
        NetworkAligner(network, 1.5, (16, 16, 16), tmp_path / "other.pt")(*volumes)


@pytest.mark.parametrize("size", [(33, 28), (21, 18, 16)], ids=["2d", "3d"])
def test_loading_a_pair_takes_the_aligners_matrix(size, tmp_path):
    """Moving and fixed are one image with origins apart; an aligner that knows it makes them equal."""
    data = phantom_pair(size, seed=1)["moving"][0, 0].numpy()
    shift = np.array([7.0, -3.0, 2.0])
    for name, origin in (("fixed", 0 * shift), ("moving", shift)):
        affine = np.eye(4)
        affine[:3, 3] = origin
        nib.save(nib.Nifti1Image(data.reshape(*size, *[1] * (3 - len(size))), affine), tmp_path / f"{name}.nii.gz")
    seen = []

    def aligner(fixed, moving):
        seen.extend([fixed, moving])
        matrix = np.eye(len(size) + 1)
        matrix[:-1, -1] = shift[: len(size)]
        return matrix

    pair = {role: str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")}
    loaded = LoadPaird(affine="learned", aligner=aligner)(pair)
    torch.testing.assert_close(loaded["moving"], loaded["fixed"], atol=1e-5, rtol=0)
    assert [volume.path for volume in seen] == [pair["fixed"], pair["moving"]]
    assert all(float(volume.data.min()) >= 0 and float(volume.data.max()) <= 1 for volume in seen)
    with pytest.raises(ValueError, match="'learned' needs an aligner"):
        LoadPaird(affine="learned")(pair)
