"""The jobs of a campaign: what its queue may say, and the command that runs each."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.experiments import BUNDLES, bundle_command, bundle_config, config_files
from custom_components.files import write_metrics


@dataclass(frozen=True)
class Job:
    """One training of a queue.

    Attributes:
        name: of the job, and of its folder.
        minutes: the budget, CPU minutes.
        bundle: whose weights are trained, by its trainer with its `configs` (names without ".json"), then the files
            `overlays`, then `settings` by id.
        data, data_list: the data folder, and the list if it is not `datalist.json` in there.
        initial_weights: file to start from.
        module, arguments: instead of the trainer, `python -m module *arguments`. In the arguments `{output}` is
            the job's folder, `{minutes}` what is left of the budget, `{initial}` the newest weights in the folder or
            else the initial ones: after a stop it starts anew from them. An argument that names weights is left out
            while there are none.
    """

    name: str
    minutes: float
    bundle: str
    configs: Sequence[str] = ("train",)
    overlays: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    data_list: str = ""
    initial_weights: str = ""
    module: str = ""
    arguments: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name) or not self.minutes > 0:
            raise ValueError(
                f"expected a job with a name of letters and digits and minutes above 0, got {self.name!r} and "
                f"{self.minutes!r}"
            )

    def identity(self) -> dict[str, Any]:
        """All that must stay the same when a job goes on: everything but the budget."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(self) if f.name != "minutes"}))

    def interval(self) -> int:
        """Epochs from one validation of the bundle's trainer to the next."""
        return int(bundle_config(self.bundle, self.configs, **self.settings)["val_interval"])

    def command(self, folder: Path, epochs: int, minutes: float) -> list[str]:
        """What runs it in its folder: a bundle's trainer to its epoch number `epochs`, a module for so many minutes."""
        if self.module:
            initial = newest_weights(folder) or self.initial_weights
            words = {"output": str(folder), "minutes": f"{minutes:.3f}", "initial": str(initial)}
            given = [word for word in self.arguments if initial or "{initial}" not in word]
            return [sys.executable, "-m", self.module, *(filled(word, words) for word in given)]
        settings = {**self.settings, "max_epochs": epochs, "val_interval": min(self.interval(), epochs)}
        if self.initial_weights:
            settings["initial_weights"] = self.initial_weights
        write_metrics(folder / "overlay.json", settings)  # a file, because MONAI ignores None on its command line
        configs = [*config_files(self.bundle, self.configs), *map(Path, self.overlays), folder / "overlay.json"]
        words = {"dataset_dir": self.data, "data_list": self.data_list or str(Path(self.data) / "datalist.json")}
        words |= {"output_dir": str(folder), "ckpt_dir": str(folder), "resume": "True"}
        return bundle_command(self.bundle, configs, words)


def newest_weights(folder: Path) -> Path | None:
    """The weights that a training has written last, not its checkpoint."""
    files = [path for path in folder.glob("*.pt") if path.name != "last.pt"]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


@dataclass(frozen=True)
class Queue:
    """Jobs in their order, and how to judge them.

    Attributes:
        jobs: the trainings.
        gate: arguments of `benchmarks.weights`, which judges the weights of every job at its end, and each
            `gate_minutes` CPU minutes, on the sets of their dimension; empty for no judgement.
    """

    jobs: Sequence[Job]
    gate: Sequence[str] = ()
    gate_minutes: float = 60.0


def read_queue(path: Path, places: Mapping[str, str]) -> Queue:
    """A queue's file: the attributes of `Queue`, each job with those of `Job`.

    Args:
        path: of the file.
        places: what `{name}` stands for in texts, by name; `{bundles}` is known.
    Raises:
        ValueError: if the file is no queue, or it lacks a place, or two jobs have one name.
    """
    known = {"bundles": str(BUNDLES), **places}
    keep = {name: f"{{{name}}}" for name in ("output", "minutes", "initial")}
    try:
        content = json.loads(path.read_text())
        queue = Queue(**filled(content, {**keep, **known}))
        jobs = [Job(**entry) for entry in queue.jobs]  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: this is no queue of trainings ({error})") from error
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: expected a name of its own for each job, got {', '.join(names)}")
    return replace(queue, jobs=jobs)


def filled(value: Any, words: Mapping[str, str]) -> Any:
    """The value with `{name}` replaced in all its texts.

    Raises:
        ValueError: for a name that has no word.
    """
    if isinstance(value, str):
        for name in re.findall(r"\{(\w+)\}", value):
            if name not in words:
                raise ValueError(f"it needs the place {name}: give --data {name}=FOLDER")
            value = value.replace(f"{{{name}}}", words[name])
        return value
    if isinstance(value, Mapping):
        return {key: filled(item, words) for key, item in value.items()}
    return [filled(item, words) for item in value] if isinstance(value, list) else value
