"""What several test files of this folder share."""

import pytest
import torch

from custom_components.data.pairs import ScanPairDataset
from custom_components.data.phantoms import phantom_pair, random_velocity
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.inference.prediction import NetworkPredictor
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.conditional_atlas.attributes import AttributeEncoder
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork
from custom_components.methods.conditional_atlas.template import ConditionalTemplate
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SIZES = [(24, 28), (12, 14, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
# Phantoms move along axes of 16 voxels and more.
phantom_sizes = pytest.mark.parametrize("size", [(24, 28), (18, 20, 16)], ids=["2-D", "3-D"])
all_sizes = pytest.mark.parametrize("size", [*SIZES, (13, 18), (9, 12, 7)], ids=str)
ATTRIBUTES = {"age": "numeric", "sex": ["F", "M"]}
PEOPLE = torch.tensor([[20.0, 0], [35, 1], [50, 1], [75, 0], [60, 1]])
SOME = torch.tensor([[25.0, 1], [70, 0], [70, 1]])
LABELS = [0, 2, 5]


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_template(size, attributes=ATTRIBUTES, *, spread=0.0, seed=0, **settings):
    """A template of noise; slopes and the decoder's last layer are drawn with the SD `spread`, if that is not 0."""
    torch.manual_seed(seed)
    template = ConditionalTemplate(size, attributes, **{"features": (8, 8, 4), "hidden": 6, **settings})
    count = len(template.label_ids)
    shares = random(1, count, *size, seed=7).mul(3).softmax(1) if count else None
    template.initialize(random(1, template.channels, *size, seed=seed), shares)
    if template.conditional:
        if attributes == ATTRIBUTES:
            template.encoder.fit(PEOPLE)
        if spread:
            for parameter in (template.last[0].weight, template.slopes, template.label_slopes):
                torch.nn.init.normal_(parameter, std=spread)
    return template


def make_network(size, attributes=ATTRIBUTES, *, flow_std=0.05, **settings):
    template = make_template(size, attributes, **settings)
    channels = {"encoder_channels": (4, 6), "decoder_channels": (6, 4, 4)}
    return AtlasNetwork(template, VoxelMorphUNet(len(size), half_resolution=True, flow_std=flow_std, **channels))


def template_inferer(deformation=None, mean_stream=None, *, precision="float32", **options):
    """The inferer of the bundle; by a velocity where the test does not say."""
    deformation = StationaryVelocity() if deformation is None else deformation
    registration = RegistrationInferer(deformation, NetworkPredictor(precision), **{"inverse": True, **options})
    return TemplateInferer(registration, mean_stream, precision)


def differs(a, b):
    """The claim is not empty: these have little to do with each other."""
    return float((a - b).norm()) > 0.05 * float(a.norm())


class Fixed(torch.nn.Module):
    """A registration network that always finds the same velocity."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = torch.nn.Parameter(velocity)

    def forward(self, pair):
        return self.velocity.expand(len(pair), *self.velocity.shape[1:])


def moved(size, velocity, attributes=ATTRIBUTES, **settings):
    """An atlas of a phantom that is always moved by a velocity."""
    template = make_template(size, attributes, **settings)
    image = phantom_pair(size, amplitude=0.0)["fixed"]
    with torch.no_grad():
        template.image.copy_(image.expand_as(template.image))
    return AtlasNetwork(template, Fixed(velocity))


def smooth(size, amplitude=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return random_velocity(size, amplitude=amplitude, spacings=(8.0,), generator=generator)


def people(size, **entries):
    """Five scans with labels, attributes and the affine of their grid, no files."""
    scans = []
    for i, (age, sex) in enumerate(PEOPLE.tolist()):
        pair = phantom_pair(size, seed=i)
        affine = torch.eye(len(size) + 1, dtype=torch.float64)
        affine[:-1, -1] = -3.5
        scan = {"image": pair["fixed"][0], "label": pair["label_fixed"][0], "grid_affine": affine, "subject": f"p{i}"}
        scans.append({**scan, "age": age, "sex": "FM"[int(sex)], **entries})
    return scans


def alone(scans, **settings):
    return ScanPairDataset(scans, partner="none", **{"shuffle": False, **settings})


def fitted():
    encoder = AttributeEncoder(ATTRIBUTES)
    encoder.fit(PEOPLE)
    return encoder


def label_maps(size, batch=2):
    return phantom_pair(size, seed=2, batch=batch)["label_moving"]
