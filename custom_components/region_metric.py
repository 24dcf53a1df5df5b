from __future__ import annotations
from collections.abc import Sequence
from typing import NamedTuple
import torch
from torch import Tensor
from .fields import at_least_float32, spatial_gradient, warp
from .shooting import State, VectorFlow, coadjoint, integrate
from .smoothing import Kernel, MultiGaussianKernel, Spacing, GaussianKernel, per_axis


class Flow(VectorFlow):
    def __init__(self, kernel, smoother, spacing, inverse, h0, route):
        super().__init__(kernel, spacing, inverse)
        self.smoother, self.h0, self.route = smoother, h0, route

    def __call__(self, state):
        m = state[0]
        if self.route in ("warp", "h0", "none", "inv"):
            h = warp(self.h0, state[1], padding="border")
        else:
            h = state[1]
        w = self.smoother(h, self.spacing)
        v, p = 0, []
        for i, c in enumerate(self.kernel.components()):
            wi = w[:, i:i+1]
            k = c(wi * m, self.spacing)
            v = v + wi * k
            p.append((m * k).sum(1))
        lam = self.smoother(torch.stack(p, 1), self.spacing)
        voxels = v / v.new_tensor(self.spacing).view(1, -1, *[1]*(v.ndim-2))
        g = spatial_gradient(self.h0 if self.route == "h0" else h)
        unit = v.new_tensor(self.spacing).view(1, -1, *[1]*(v.ndim-2))
        force = (lam.unsqueeze(2) * g).sum(1) / unit
        if self.route == "none": force = 0
        if self.route == "inv": force = -force
        rates = [coadjoint(m, v, voxels, self.spacing) + force]
        if self.route == "advect":
            rates.append(-(voxels.unsqueeze(1) * g).sum(2))
        return (*rates, *self.mapped(state, voxels)), voxels


def run(m, h0, kernel, smoother, spacing, steps, route, inverse=True):
    spacing = per_axis(spacing, m.ndim - 2)
    flow = Flow(kernel, smoother, spacing, inverse, h0, route)
    zero = torch.zeros_like(m)
    state = (m, *([h0] if route == "advect" else []), zero, *([zero] if inverse else []))
    s1, n = integrate(flow, state, steps, checkpoint=False, max_steps=400)
    def energy(m, h):
        w = smoother(h, spacing)
        return sum((m * w[:, i:i+1] * c(w[:, i:i+1] * m, spacing)).sum() for i, c in enumerate(kernel.components()))
    ddf = s1[1 + (route == "advect")]
    h1 = s1[1] if route == "advect" else warp(h0, ddf, padding="border")
    return energy(m, h0), energy(s1[0], h1), s1, h1, n
