"""Weights of networks, and the sidecar of each file of them: `model.json` beside `model.pt` says what they are for.

A sidecar is a JSON object with plain values. Its keys, each of which may be absent or null:

- `state`: the SHA-256 of the file of weights; nothing is believed of a sidecar of other weights;
- `spatial_dims`, `spacing` (mm; null for series, which are in pixels), `deformation` (see `Deformation.description`),
  `hyper_names`: what the network was trained for, with which a configuration must agree;
- `size`, `contrasts`, `training_data`, `licence`, `steps`, `pairs_per_step`, `hardware`: how it was trained, in the
  last stage if there were `earlier` ones;
- `figures`: what was measured, by the test's name; `experimental`: whether it does not yet beat what it builds on.

`training.BestCheckpoint` writes one for each training, `python -m benchmarks.sidecar` those of the bundles. Weights
without one are loaded as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .files import read_state, write_metrics
from .notices import warn

SPACING_FACTOR = 2.0  # by which the spacing may differ from that of the training
_SILENT_FACTOR = 1.25


def load_weights(
    network: nn.Module,
    path: str | os.PathLike[str],
    name: str,
    settings: Mapping[str, object] | None = None,
    *,
    spacing_factor: float = SPACING_FACTOR,
) -> None:
    """Load a state file into a network, where its parameters are, if its sidecar agrees with the settings.

    Args:
        network: gets the state.
        path: of the file.
        name: of the network, for the messages.
        settings: what the network is to be used for, by the sidecar's keys; None checks nothing.
        spacing_factor: by which the spacing may differ from that of the training.
    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold this network's weights, or they are for other settings.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there are no weights of the {name} network; train them")
    check_settings(path, settings or {}, spacing_factor=spacing_factor)
    state = read_state(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: these are not weights of this {name} network") from error


class FixedNetwork:
    """A network that answers and is not trained. Its weights are loaded when it is first asked for.

    Args:
        network: any.
        weights: file of its state; None leaves the network as it is.
        name, settings: as for `load_weights`.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | os.PathLike[str] | None,
        name: str,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.module, self.weights, self.name, self.settings = network, weights, name, settings
        self._ready = False
        self._device: torch.device | None = None

    def on(self, device: torch.device | None = None) -> nn.Module:
        """The network on a device, for which the host waits once; None: where it is. Errors as `load_weights`."""
        if not self._ready:
            if self.weights is not None:
                load_weights(self.module, self.weights, self.name, self.settings)
            self.module.eval().requires_grad_(False)
            self._ready = True
        if device is not None and device != self._device:
            self.module.to(device)
            self._device = device
        return self.module


def load_parts(network: nn.Module, files: Mapping[str, str | os.PathLike[str]]) -> None:
    """Load the state of parts of a network, by name, each from a file of its own; no file for "none".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold the part's weights.
    """
    for name, path in files.items():
        if str(path) != "none":
            load_weights(network.get_submodule(name), path, name)


def check_settings(
    path: str | os.PathLike[str], settings: Mapping[str, object], *, spacing_factor: float = SPACING_FACTOR
) -> None:
    """Compare the settings that a network is used with to those that its weights were trained for.

    A spacing that differs by up to a quarter passes, by up to `spacing_factor` it brings a warning. All other settings
    must be equal. What the sidecar does not tell is not compared.

    Raises:
        ValueError: if they do not agree; the message names the setting, and what the weights are for.
    """
    told = read_sidecar(path) if settings else {}
    sidecar = {key: value for key, value in told.items() if value is not None}
    for key in sorted(settings.keys() & sidecar.keys(), key=_order):
        found, wanted = sidecar[key], settings[key]
        if key == "spacing":
            _check_spacing(path, found, wanted, spacing_factor)
        elif key == "spatial_dims" and found != wanted:
            raise ValueError(f"{path}: these weights are for {found}-D images, not for {wanted}-D ones")
        elif _plain(found) != _plain(wanted):
            what = "the configuration has"
            raise ValueError(f"{path}: these weights were trained for {key} {_text(found)}, {what} {_text(wanted)}")


def _order(key: str) -> tuple[bool, str]:
    return key != "spatial_dims", key  # from another dimension everything else follows


def _check_spacing(path: str | os.PathLike[str], found: object, wanted: object, limit: float) -> None:
    try:
        trained, used = (np.atleast_1d(np.asarray(value, dtype=float)) for value in (found, wanted))
    except (TypeError, ValueError):
        return  # None keeps the image's own; what is no spacing is refused where it is used
    if not (used > 0).all():
        return
    ratio = float(np.maximum(trained / used, used / trained).max())
    if ratio <= _SILENT_FACTOR:
        return
    was, now = (" x ".join(f"{value:g}" for value in np.atleast_1d(values)) for values in (trained, used))
    sentence = f"{path}: these weights were trained at a spacing of {was} mm, not {now} mm"
    if ratio > limit * 1.001:
        raise ValueError(
            f"{sentence}; give --spacing {was}, or --load_weights#spacing_factor {ratio:.3g} to use them as they are"
        )
    warn(f"{sentence}; expect less of the network")


def sidecar_path(weights: str | os.PathLike[str]) -> Path:
    """Where the sidecar of a file of weights is."""
    return Path(weights).with_suffix(".json")


def read_sidecar(weights: str | os.PathLike[str]) -> dict[str, object]:
    """What the sidecar of a file of weights tells; empty without one, and, with a warning, if it is of other weights.

    Raises:
        ValueError: if it is no JSON object.
    """
    path = sidecar_path(weights)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    if content.get("state") != digest(weights):
        warn(f"{path}: describes other weights than {Path(weights).name}; it is not used")
        return {}
    return content


def write_sidecar(weights: str | os.PathLike[str], content: Mapping[str, object]) -> None:
    """Write the sidecar of a file of weights, which must be there, with its `state`; one there is replaced at once."""
    write_metrics(sidecar_path(weights), {**content, "state": digest(weights)})


def digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _plain(value: object) -> object:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
