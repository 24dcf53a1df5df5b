"""The network of each bundle."""

from __future__ import annotations

import pytest
import torch
from bundle_cases import EVERY_BUNDLE, read_json
from monai.bundle import ConfigParser, verify_net_in_out

pytestmark = pytest.mark.filterwarnings("ignore")


bundles = EVERY_BUNDLE


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
    )


def test_scripted_network_gives_equal_output(bundle):
    parser = ConfigParser(read_json(bundle / "configs" / "inference.json"))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    metadata = read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    image = torch.rand(
        1, metadata["num_channels"], *[n if isinstance(n, int) else 32 for n in metadata["spatial_shape"]]
    )
    with torch.no_grad():
        assert torch.equal(torch.jit.script(network)(image), network(image))
