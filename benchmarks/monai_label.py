"""Dice of the labels that a MONAI Label server answers with, for exported bundles: the table in docs/monai_label.md.

    python -m benchmarks.monai_label LABELMAPS/datalist.json OUT [--bundles voxelmorph,avsm] [--python LABEL/bin/python]

The list's section `validation` holds whole-head label maps of one person each, with labels.csv beside the list. They
are rendered T1-like: the first is the atlas, the next ones are the studies, one in LAS, one in an oblique frame, one
both in RAS and in PIR; headers are left as they are. --python is that of an environment with MONAI Label
(docs/monai_label.md); without it, OUT receives one that shares the packages of this environment. Finished rows are kept
in OUT/rows.json; OUT/table.md is written at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import REPOSITORY
from custom_components.commands.label_server_export import export_for_monai_label
from custom_components.data.lists import load_list
from custom_components.evaluation.overlap import mean_dice, present_labels
from custom_components.space import load_labels, resample
from custom_components.synthesis.brains import BrainContrast

COMMAND = REPOSITORY / "docs" / "monai_label_server.py"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
    "CUDA_VISIBLE_DEVICES": "",
    "BUNDLE_DOWNLOAD_SRC": "local",
    "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
}
ATLAS, STUDIES = "RAS", (("LAS",), ("oblique",), ("RAS", "PIR"))  # frames for each person
ASKED: dict[str, list[dict[str, Any]]] = {
    "voxelmorph": [{"optimize": 0}, {"optimize": 10}],
    "hypermorph": [{"hyper": 0.1, "optimize": 0}, {"hyper": 0.9, "optimize": 0}],
}


def make_environment(folder: Path) -> str:
    """The Python of an environment in the folder that has MONAI Label; packages of this environment are shared.

    Raises:
        RuntimeError: if it cannot be installed, in one line.
    """
    if sys.version_info >= (3, 12):
        raise RuntimeError("MONAI Label 0.8.5 needs Python 3.11 or older")
    python, finished = folder / "bin" / "python", folder / "finished"
    requirements = [REPOSITORY / "docs" / f"monai_label_{name}.txt" for name in ("requirements", "no_deps")]
    wanted = "".join(path.read_text(encoding="utf-8") for path in requirements)
    if finished.exists() and finished.read_text(encoding="utf-8") == wanted:
        return str(python)
    venv.create(folder, with_pip=True, clear=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for path, words in zip(requirements, ([], ["--no-deps"]), strict=True):
        command = [str(python), "-m", "pip", "install", "--quiet", *words, "-r", str(path)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
            raise RuntimeError(f"pip cannot install MONAI Label: {(errors or [done.stderr])[-1].strip()}")
    finished.write_text(wanted, encoding="utf-8")
    return str(python)


@contextmanager
def running_server(python: str, folder: Path, models: Sequence[Path], studies: Path) -> Iterator[str]:
    """The address of a MONAI Label server with copies of the models; its log is server.log in the folder.

    Raises:
        RuntimeError: if it does not answer within two minutes, with the end of the log.
    """
    app = folder / "monaibundle"
    shutil.rmtree(app, ignore_errors=True)
    words = ["apps", "--download", "--name", "monaibundle", "--output", str(folder)]
    subprocess.run([python, str(COMMAND), *words], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    for model in models:
        shutil.copytree(model, app / "model" / model.name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["start_server", "--app", str(app), "--studies", str(studies), "--conf", "sam2", "false"]
    words += ["--conf", "models", ",".join(model.name for model in models), "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen([python, str(COMMAND), *words], env=ENVIRONMENT, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(address, process, folder / "server.log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/info/", timeout=60):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start: {log.read_text()[-3000:]}")


def curl(output: Path, *words: Any) -> int:
    """The status of an answer that is saved as a file."""
    command = ["curl", "-s", "-o", output, "-w", "%{http_code}", *words]
    return int(subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600).stdout)


def infer(server: str, output: Path, model: str, study: str, *words: Any, **settings: Any) -> int:
    """Ask for the labels of a study; the status."""
    url = f"{server}/infer/{model}?image={study}&output=image"
    return curl(output, "-X", "POST", url, "-F", f"params={json.dumps(settings)}", *words)


def orient(volume: nib.Nifti1Image, name: str) -> nib.Nifti1Image:
    """A volume in a frame of these axes, or turned by 12 degrees about two of them and shifted ("oblique")."""
    if name != "oblique":
        axes = nib.orientations.axcodes2ornt(name)
        return volume.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(volume.affine), axes))
    cosine, sine = np.cos(np.radians(12)), np.sin(np.radians(12))
    turn = np.eye(4)
    turn[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
    )
    turn[:3, 3] = 12, -7, 9
    return nib.Nifti1Image(np.asarray(volume.dataobj), turn @ volume.affine)


def render_studies(data_list: Path, folder: Path) -> None:
    """Write atlas.nii.gz, atlas_labels.nii.gz, and in studies/ and truth/ the other people's images and labels."""
    scans = load_list(data_list, "validation", data_list.parent)
    if len(scans) < 2:
        raise ValueError(f"{data_list}: expected at least two label maps in section 'validation'")
    for name in ("studies", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    render = BrainContrast(data_list.parent / "labels.csv", std=(2.5, 5), gamma=0.1)
    generator = torch.Generator().manual_seed(1)
    for scan, names in zip(scans, ((ATLAS,), *STUDIES), strict=False):
        file = nib.load(scan["label"])
        labels = np.asarray(file.dataobj).astype(np.int16)
        image = render(torch.from_numpy(labels)[None, None], render.draw(1, labels.shape, generator))[0, 0]
        for name in names:
            places = (folder / "studies" / f"{name}.nii.gz", folder / "truth" / f"{name}.nii.gz")
            if scan is scans[0]:
                places = (folder / "atlas.nii.gz", folder / "atlas_labels.nii.gz")
            for data, place in zip(((255 * image).round().byte().numpy(), labels), places, strict=True):
                nib.save(orient(nib.Nifti1Image(data, file.affine), name), place)


def dice(found: Tensor, truth: Tensor) -> float:
    """Mean over the structures of the head's inside, whose ids are below 100."""
    ids = [id for id in present_labels(truth) if 0 < id < 100]
    return float(mean_dice(found[None], truth[None], ids))


def measure(data_list: Path, output: Path, python: str, asked: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Any]:
    """Rows of model, settings, and for each study Dice and seconds; the first row is the atlas as it lies.

    Raises:
        RuntimeError: if the server gives no answer, or one on another grid than the study's.
    """
    if not (output / "studies").exists():
        render_studies(data_list, output)
    files = {key: str(output / f"{key}.nii.gz") for key in ("atlas", "atlas_labels")}
    files["label_names"] = str(data_list.parent / "labels.csv")
    shutil.rmtree(output / "models", ignore_errors=True)
    for name in asked:
        export_for_monai_label(REPOSITORY / "bundles" / name, output / "models", **files)
    truths = {path.name[:-7]: load_labels(path) for path in sorted((output / "truth").iterdir())}
    atlas = load_labels(files["atlas_labels"])
    before = {name: resample(atlas.data, atlas.affine, truth.grid, mode="nearest") for name, truth in truths.items()}
    kept = output / "rows.json"
    rows = [["", {}, {name: [dice(labels, truths[name].data), 0.0] for name, labels in before.items()}]]
    rows = json.loads(kept.read_text()) if kept.exists() else rows
    with running_server(python, output, sorted((output / "models").iterdir()), output / "studies") as server:
        for model, settings in ((name, dict(each)) for name in asked for each in asked[name]):
            if any(row[:2] == [model, settings] for row in rows):
                continue
            found = {}
            for name, truth in truths.items():
                start, answer = time.perf_counter(), output / "answer.nii.gz"
                status = infer(server, answer, f"{model}_atlas", name, affine="learned", **settings)
                seconds = time.perf_counter() - start
                labels = load_labels(answer) if status == 200 else None
                if labels is None or labels.file_shape != truth.file_shape:
                    raise RuntimeError(f"{model} on {name}: status {status}; see {output / 'server.log'}")
                np.testing.assert_allclose(labels.file_affine, truth.file_affine, atol=1e-4)
                found[name] = [dice(labels.data, truth.data), seconds]
            rows.append([model, settings, found])
            kept.write_text(json.dumps(rows))
            print(model, settings, found, flush=True)
    return rows


def table(rows: Sequence[Any]) -> str:
    """The rows as Markdown."""
    names = list(rows[0][2])
    lines = [f"| model, settings | {' | '.join(names)} | seconds |", "|---|" + "---|" * (len(names) + 1)]
    for model, settings, found in rows:
        words = [f"`{model}_atlas`", *(f"`{key}` {value}" for key, value in settings.items())] if model else ["before"]
        seconds = sorted({round(found[name][1]) for name in names})
        span = " to ".join(map(str, seconds[:: max(1, len(seconds) - 1)])) if model else ""
        lines.append(f"| {', '.join(words)} | {' | '.join(f'{found[name][0]:.3f}' for name in names)} | {span} |")
    return "\n".join(lines) + "\n"


def main(data_list: str, output: str, bundles: Sequence[str] | str = (), python: str = "") -> None:
    """Measure the bundles, by default all that register pairs."""
    configs = {path.parents[1].name: path.read_text() for path in REPOSITORY.glob("bundles/*/configs/inference.json")}
    names = [bundles] if isinstance(bundles, str) else list(bundles)
    names = names or sorted(name for name, text in configs.items() if "conditions" not in json.loads(text))
    place = Path(output)
    place.mkdir(parents=True, exist_ok=True)
    python = python or make_environment(place / "label")
    text = table(measure(Path(data_list), place, python, {name: ASKED.get(name, [{}]) for name in names}))
    (place / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    import fire

    fire.Fire(main)
