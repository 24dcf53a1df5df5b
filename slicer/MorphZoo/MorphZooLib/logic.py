"""Register two volume nodes by the command `morphzoo`, which lies in an environment of its own.

Of Slicer this file uses the reading and writing of nodes alone, so it also runs where a stub of `slicer` has these.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

_PYTHON_OF_SLICER = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True)
class Registered:
    """What a registration adds to the scene.

    Args:
        warped: the moving volume on the fixed volume's grid.
        transform: the transform that brings further nodes from the moving to the fixed volume.
        labels: the moving label map on the fixed volume's grid; None without one.
        metrics: the measures, as in metrics.json.
    """

    warped: Any
    transform: Any
    labels: Any
    metrics: Mapping[str, object]


class MorphZooLogic:
    """Run the command on nodes, and load what it wrote.

    Args:
        command: how the command is called: its path, or several words.
        wait: called again and again while it runs, for instance to keep the panel alive.
    """

    def __init__(self, command: str | Sequence[str] = "morphzoo", wait: Callable[[], None] = lambda: None) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self.wait = wait

    def register(
        self,
        moving: Any,
        fixed: Any,
        *,
        bundle: str = "synthmorph",
        labels: Any = None,
        options: str | Sequence[str] = (),
    ) -> Registered:
        """Register a volume node to another one.

        Args:
            moving, fixed: volume nodes, as they lie in the scene, with their linear transforms.
            bundle: name of a bundle.
            labels: label map node of the moving volume, which is brought along.
            options: further words for `morphzoo register`.
        Raises:
            FileNotFoundError: if there is no such command.
            RuntimeError: if it fails, with its own sentence.
        """
        with tempfile.TemporaryDirectory(prefix="morphzoo") as name:
            folder = Path(name)
            nodes = {"moving": moving, "fixed": fixed} | ({} if labels is None else {"label_moving": labels})
            paths = {role: self._written(node, folder / f"{role}.nii.gz") for role, node in nodes.items()}
            words = ["register", paths["moving"], paths["fixed"], "-o", str(folder / "out"), "--bundle", bundle]
            words += ["--label_moving", paths["label_moving"]] if labels is not None else []
            words += shlex.split(options) if isinstance(options, str) else list(options)
            told = json.loads(self._run([*words, "--json"], folder))
            return self._loaded(told, _name(moving), labels is not None)

    @staticmethod
    def _written(node: Any, path: Path) -> str:
        """The path of a node's file, in world coordinates."""
        if not slicer.util.exportNode(node, str(path), world=True) or not path.is_file():
            raise RuntimeError(f"{_name(node)} cannot be written as {path.name}")
        return str(path)

    def _run(self, words: Sequence[str], folder: Path) -> str:
        """What the command prints."""
        with (folder / "said.txt").open("w") as said, (folder / "told.json").open("w") as told:
            try:
                process = subprocess.Popen(
                    [*self.command, *words], stdout=told, stderr=said, stdin=subprocess.DEVNULL, env=_environment()
                )
            except OSError as error:
                raise FileNotFoundError(f"{self.command[0]}: there is no such command; give its path") from error
            try:
                while process.poll() is None:
                    self.wait()
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            lines = [line for line in (folder / "said.txt").read_text().splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"morphzoo ended with code {process.returncode}")
        return (folder / "told.json").read_text()

    @staticmethod
    def _loaded(told: Mapping[str, Any], name: str, with_labels: bool) -> Registered:
        files = told["files"]
        if "transform" not in files:
            raise RuntimeError("no whole transform was written; it needs itk: pip install 'morphzoo[demo]'")
        warped = slicer.util.loadVolume(files["warped"], {"name": f"{name} registered"})
        labels = None
        if with_labels:
            properties = {"name": f"{name} labels registered", "labelmap": True}
            labels = slicer.util.loadVolume(files["warped_label"], properties)
        transform = slicer.util.loadTransform(files["transform"])
        transform.SetName(f"{name} transform")
        return Registered(warped, transform, labels, told["metrics"])


def _name(node: Any) -> str:
    return str(node.GetName())


def _environment() -> dict[str, str]:
    """That of the time before Slicer began: its libraries and Python are not those of the command."""
    before = getattr(slicer.util, "startupEnvironment", None)
    if before is not None:
        return dict(before())
    return {key: value for key, value in os.environ.items() if key not in _PYTHON_OF_SLICER}
