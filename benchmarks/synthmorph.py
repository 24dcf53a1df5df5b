"""Measurements behind the figures on the bundle's page.

    python -m benchmarks.synthmorph contrasts LABELMAPS/datalist.json      # Dice for pairs of contrasts
    python -m benchmarks.synthmorph partners SLICES/datalist.json          # T1 to T2 between people, judged by the T1s
    python -m benchmarks.synthmorph stretched PROSTATE/datalist.json       # pairs without a common world
    python -m benchmarks.synthmorph generator                              # speed of the generator
    python -m benchmarks.synthmorph inflate 2D.pt 3D.pt                    # a start for the 3-D training

The first three accept --overlay FILE and --weights FILE (as `morphzoo register` does), and --optimize N.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.experiments import BUNDLES
from benchmarks.rendered_people import CONTRASTS, STRUCTURES, load_people, rendered_pairs
from custom_components.data.lists import load_list
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.evaluation.overlap import label_overlap, mean_dice
from custom_components.fields import jacobian_determinant, warp
from custom_components.space import load_image, load_labels
from custom_components.transforms.intensities import scale_intensity
from custom_components.transforms.load import LoadPaird

BUNDLE = BUNDLES / "synthmorph"


class Model:
    """The bundle's network and inferer, as its inference.json says."""

    def __init__(self, overlay: str = "", weights: str = "", optimize: int = 0) -> None:
        self.parser = ConfigParser()
        self.parser.read_config([str(BUNDLE / "configs" / "inference.json"), *filter(None, overlay.split(","))])
        self.parser.update({"bundle_root": str(BUNDLE), "optimize": optimize, "refinement#progress": False})
        self.network = self.parser.get_parsed_content("network").eval()
        self.inferer = self.parser.get_parsed_content("inferer")
        if "ZeroField" not in str(self.parser["network_def#_target_"]):
            path = weights or self.parser.get_parsed_content("weights")
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def __call__(self, moving: Tensor, fixed: Tensor) -> dict[str, Any]:
        return self.inferer(torch.cat([moving, fixed], 1), self.network)


def contrasts(
    data_list: str,
    overlay: str = "",
    weights: str = "",
    optimize: int = 0,
    *,
    spacing: float = 2.0,
    size: Sequence[int] = (80, 112, 96),
    strip: float = 1.0,
) -> None:
    """Mean Dice over main structures, all ordered pairs of the validation people, rendered in three pairs of contrasts.

    The maps must be affinely aligned (data_lists/align.py), with labels.csv beside the list.
    """
    model, people = Model(overlay, weights, optimize), load_people(Path(data_list), spacing=spacing, size=size)
    for fixed in CONTRASTS:
        rows = []
        for _, _, pair in rendered_pairs(people, Path(data_list).parent / "labels.csv", fixed, strip=strip):
            start = time.perf_counter()
            pred = model(pair["moving"], pair["fixed"])
            seconds = time.perf_counter() - start
            warped = warp(pair["label_moving"], pred["ddf"], mode="nearest")
            before, after = (
                float(label_overlap(labels, pair["label_fixed"], STRUCTURES).nanmean())
                for labels in (pair["label_moving"], warped)
            )
            rows.append((before, after, _folds(pred["ddf"], pair["label_fixed"] > 0), seconds))
        _print(f"T1-like to {fixed}-like", ("Dice before", "after", "folds %", "s"), rows)


def partners(
    data_list: str, overlay: str = "", weights: str = "", optimize: int = 0, *, section: str = "validation"
) -> None:
    """2-D people with aligned T1 and T2: register T1 to another's T1 or T2, judge by the correlation of the T1s.

    The correlation is taken where both fixed images show something: T2s may cover less of the neck.
    """
    overlay = overlay or str(BUNDLE / "configs" / "inference_2d.json")
    model, folder = Model(overlay, weights, optimize), Path(data_list).parent
    people, load = json.loads(Path(data_list).read_text())[section], LoadPaird(spacing=1.0)
    for contrast in ("t1", "t2"):
        rows = []
        for a in people:
            for b in people:
                if a is not b:
                    item = {"moving": str(folder / a["image_t1"]), "fixed": str(folder / b["image_t1"])}
                    judge = load(item)
                    pair = load({**item, "fixed": str(folder / b[f"image_{contrast}"])})
                    pred = model(pair["moving"][None], pair["fixed"][None])
                    moving, fixed = judge["moving"][None], judge["fixed"][None]
                    head = (fixed > 0.1) & (load({**item, "fixed": str(folder / b["image_t2"])})["fixed"][None] > 0.1)
                    images = (moving, warp(moving, pred["ddf"]))
                    before, after = (
                        float(normalized_cross_correlation(image, fixed, head.float())) for image in images
                    )
                    rows.append((before, after, _folds(pred["ddf"], head)))
        _print(f"T1 to another's {contrast.upper()}", ("NCC of the T1s before", "after", "folds %"), rows)


def stretched(
    data_list: str,
    overlay: str = "",
    weights: str = "",
    optimize: int = 0,
    *,
    section: str = "test",
    size: Sequence[int] = (64, 64, 64),
) -> None:
    """Pairs whose headers place them nowhere: both grids stretched onto one; mean Dice of all labels."""
    model, folder, rows = Model(overlay, weights, optimize), Path(data_list).parent, []
    for pair in load_list(data_list, section, folder):
        images = [
            F.interpolate(scale_intensity(load_image(pair[key]).data)[None], list(size), mode="trilinear")
            for key in ("moving", "fixed")
        ]
        labels = [
            F.interpolate(load_labels(pair[f"label_{key}"]).data[None].float(), list(size), mode="nearest").to(
                torch.uint8
            )
            for key in ("moving", "fixed")
        ]
        pred = model(*images)
        warped = warp(labels[0], pred["ddf"], mode="nearest")
        before, after = (float(mean_dice(one, labels[1]).nanmean()) for one in (labels[0], warped))
        rows.append((before, after, _folds(pred["ddf"], torch.ones_like(labels[1], dtype=torch.bool))))
    _print(f"{section} pairs", ("Dice before", "after", "folds %"), rows)


def generator(repeats: int = 5) -> None:
    """Images per second, and the generator's share of a training step (network, loss, backward) at 2 mm and 1 mm."""
    from custom_components.data.batches import SynthesizedBatch

    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser.update({"train#trainer": None, "statistics": None})
    for spacing, size in ((2, (80, 112, 96)), (1, (160, 224, 192))):
        shapes = F.interpolate(torch.randint(1, 60, (1, 1, 8, 10, 9)).float(), size, mode="nearest").to(torch.int16)
        prepare = SynthesizedBatch(parser.get_parsed_content("synthesis"))
        network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
        inferer = parser.get_parsed_content("inferer")
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            image, targets, _, _ = prepare({"label_moving": shapes, "label_fixed": shapes}, torch.device("cpu"))
            middle = time.perf_counter()
            loss(inferer(image, network), targets).backward()
            times.append((middle - start, time.perf_counter() - middle))
        made, rest = (sorted(column)[repeats // 2] for column in zip(*times, strict=True))
        share, step = 100 * made / (made + rest), made + rest
        print(f"{spacing} mm: {2 / made:.1f} images/s, {share:.0f} % of a step of {step:.2f} s", flush=True)


def _folds(ddf: Tensor, mask: Tensor) -> float:
    return 100 * float((jacobian_determinant(ddf)[mask] <= 0).float().mean())


def _print(name: str, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    means = torch.tensor(rows).mean(0).tolist()
    print(
        f"{name} (n = {len(rows)}): " + ", ".join(f"{c} {m:.4f}" for c, m in zip(columns, means, strict=True)),
        flush=True,
    )


def inflate(source: str, target: str) -> None:
    """Write weights of the 3-D network that works on each slice across the last axis as a file's 2-D network does.

    Each 3 x 3 kernel becomes the middle of a 3 x 3 x 3 one; the third component of the field starts at 0. A 2-D network
    sees many more contrasts in the same time, so that it is a start for the 3-D training.
    """
    weights = torch.load(source, map_location="cpu", weights_only=True)
    for name, value in weights.items():
        if value.ndim == 4:
            weights[name] = value = F.pad(value.unsqueeze(-1), (1, 1))
        if name.startswith("flow."):
            weights[name] = torch.cat([value, torch.zeros_like(value[:1])])
    torch.save(weights, target)


if __name__ == "__main__":
    import fire

    fire.Fire(
        {
            "contrasts": contrasts,
            "partners": partners,
            "stretched": stretched,
            "generator": generator,
            "inflate": inflate,
        }
    )
