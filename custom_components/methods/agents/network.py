"""The network of the bundle `rigid_agent`: it scores what an agent can do next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...networks.blocks import check_pair, check_spatial_dims, convolution, initialize_layers


class AgentNetwork(nn.Module):
    """The value of each action of each step, from the moving image as the map so far warps it, and the fixed image.

    Both images pass the same tower (dual stream): two convolutions of stride 2 and two more. Each of its features is a
    landmark: the squared positive part has a centre of mass and second moments about it. Where centres lie apart by a
    vector d, the whole image has to move by d, and to turn by the moment x x d about the grid's centre; where second
    moments differ, it has to turn, too. A joint stream sees both towers' features at each place, for what no landmark
    tells: two convolutions, the second one of stride 2, the mean of each feature and its first moments. Three dense
    layers make the values. Images of any size do.

    Parameters: 484,712 with the defaults in 3-D, 209,444 in 2-D.

    Args:
        spatial_dims: 2 or 3.
        steps, actions: how many there are of each (`moves.Moves`).
        widths: features of the tower's first two layers, then of all others.
        dense: features of the dense layer.
    Shapes: input (B, 2, *S), moving, then fixed, in [0, 1]; output (B, steps, actions), float32.
    Raises:
        ValueError: for another dimension, or an input that is no pair of such images.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        steps: int = 6,
        actions: int = 12,
        widths: Sequence[int] = (16, 32, 48),
        dense: int = 128,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.spatial_dims, self.steps, self.actions = spatial_dims, steps, actions
        first, second, joint = widths
        self.tower = nn.Sequential(
            *_layer(spatial_dims, 1, first, stride=2),
            *_layer(spatial_dims, first, second, stride=2),
            *_layer(spatial_dims, second, joint),
            convolution(spatial_dims, joint, joint),
        )
        self.joint = nn.Sequential(
            *_layer(spatial_dims, 2 * joint, joint), *_layer(spatial_dims, joint, joint, stride=2)
        )
        turns = 3 if spatial_dims == 3 else 1
        second_moments = spatial_dims * (spatial_dims + 1) // 2
        seen = joint * (2 * spatial_dims + turns + 2 * second_moments + 1 + spatial_dims)
        self.values = nn.Sequential(
            nn.Linear(seen, dense), nn.LeakyReLU(0.1), nn.Linear(dense, dense), nn.LeakyReLU(0.1)
        )
        self.last = nn.Linear(dense, steps * actions)
        initialize_layers(self, 0.1)
        nn.init.zeros_(self.last.weight)

    def forward(self, image: Tensor) -> Tensor:
        check_pair(image, self.spatial_dims)
        moving, fixed = self.tower(image[:, :1]).float(), self.tower(image[:, 1:]).float()
        (here, spread), (there, other) = self.landmarks(fixed), self.landmarks(moving)
        apart = there - here
        joint = self.joint(torch.cat([moving, fixed], 1)).float()
        found = [here.flatten(1), 5.0 * apart.flatten(1), 5.0 * moment(here, apart).flatten(1)]
        found += [5.0 * spread.flatten(1), 20.0 * (other - spread).flatten(1)]
        found += [joint.flatten(2).mean(2), 3.0 * mean_products(joint, self.spatial_dims).flatten(1)]
        return self.last(self.values(torch.cat(found, 1))).view(-1, self.steps, self.actions)

    def landmarks(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (B, K, *S) the centres of mass (B, K, D) and the second moments about them (B, K, D (D + 1) / 2),
        in units of half of the grid's longest side."""
        d = self.spatial_dims
        mass = features.relu().square() + 1e-6
        means = mean_products(mass, d + d * (d + 1) // 2) / mass.flatten(2).mean(2, keepdim=True)
        centre = means[:, :, :d]
        number, products = d, [centre[:, :, :0]]
        for i in range(d):
            for j in range(i, d):
                products.append(means[:, :, number : number + 1] - centre[:, :, i : i + 1] * centre[:, :, j : j + 1])
                number += 1
        return centre, torch.cat(products, 2)


def mean_products(features: Tensor, count: int) -> Tensor:
    """The mean over the grid of features (B, K, *S) times the first `count` of: places along each axis, and their
    products of two (0 0, 0 1, ..., 1 1, ...); (B, K, count). Places are in units of half of the grid's longest side."""
    size = features.shape[2:]
    d, longest = len(size), max(max(size) - 1, 1)
    places: list[Tensor] = []
    for axis in range(d):
        shape, n = [1] * d, size[axis]
        shape[axis] = n
        place = (torch.arange(n, dtype=features.dtype, device=features.device) - (n - 1) / 2) * 2 / longest
        places.append(place.view(shape).expand(size).flatten())
    for i in range(d):
        for j in range(i, d):
            places.append(places[i] * places[j])
    # Sums and no matrix product, which autocast would round to bfloat16: landmarks would lie on a coarse grid.
    return (features.flatten(2).float()[:, :, None] * torch.stack(places[:count])).mean(3)


def moment(place: Tensor, vector: Tensor) -> Tensor:
    """place x vector of vectors (B, K, D): (B, K, 3), or (B, K, 1) in 2-D."""
    if place.shape[2] == 3:
        return torch.linalg.cross(place, vector, dim=2)
    return place[:, :, :1] * vector[:, :, 1:] - place[:, :, 1:] * vector[:, :, :1]


def _layer(spatial_dims: int, n_in: int, n_out: int, *, stride: int = 1) -> list[nn.Module]:
    norm = nn.GroupNorm(n_out // 8, n_out)
    return [convolution(spatial_dims, n_in, n_out, stride=stride), norm, nn.LeakyReLU(0.1)]
