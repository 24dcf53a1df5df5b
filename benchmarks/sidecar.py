"""Write the sidecars of shipped weights: `model.json` beside `model.pt` (see `custom_components.weights`).

    python -m benchmarks.sidecar bundles/voxelmorph/models/model.pt steps=13550 'contrasts=["T1"]' --figures gate.json

What the bundle's configuration says of the weights (spatial_dims, spacing, deformation, hyper_names) is taken from
there, `state` from the file. All else stays as it is in the sidecar, unless KEY=VALUE gives it; but figures of other
weights go. `experimental` of a bundle's model.pt goes into its metadata.json, too; the README's table needs the word.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from custom_components.weights import digest, sidecar_path, write_sidecar

# What every sidecar tells, in this order; `null` is what nobody knows.
KEYS = ("experimental", "spatial_dims", "spacing", "size", "contrasts", "hyper_names", "deformation", "training_data")
KEYS += ("licence", "steps", "pairs_per_step", "hardware", "earlier", "figures")


def configured(weights: Path) -> dict[str, object]:
    """What the configuration for which a bundle's weights are the default says of them; empty if there is none."""
    bundle = weights.resolve().parents[1]
    base = bundle / "configs" / "inference.json"
    for variant in sorted((bundle / "configs").glob("inference*.json")):  # inference.json comes first
        parser = ConfigParser(ConfigParser.load_config_files([str(base), str(variant)]))
        parser["bundle_root"] = str(bundle)
        if Path(parser.get_parsed_content("weights")) == weights.resolve():
            return dict(parser.get_parsed_content("load_weights").settings)
    return {}


def update(weights: Path, values: dict[str, object], figures: dict[str, object] | None = None) -> dict[str, object]:
    """Write the sidecar of weights with new values; returns what it tells."""
    path = sidecar_path(weights)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = before.get("figures") if before.get("state") == digest(weights) else {}
    content = {**dict.fromkeys(KEYS), **before, **configured(weights), **values}
    content["figures"] = {**(known or {}), **(figures or {})}
    write_sidecar(weights, content)
    metadata = weights.resolve().parents[1] / "configs" / "metadata.json"
    if weights.name == "model.pt" and metadata.is_file():
        flag = json.dumps(content["experimental"])
        text = re.sub(r'"experimental": \w+', f'"experimental": {flag}', metadata.read_text(encoding="utf-8"))
        metadata.write_text(text, encoding="utf-8")
    return content


def _value(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or key not in KEYS:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE with a key of {', '.join(KEYS)}, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main(command: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights", type=Path, help="a file of weights of a bundle")
    parser.add_argument("values", nargs="*", type=_value, metavar="KEY=VALUE", help="values as JSON, or text")
    parser.add_argument("--figures", type=Path, help="JSON object of what was measured, by the test's name")
    args = parser.parse_args(command)
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures else None
    content = update(args.weights, dict(args.values), figures)
    unknown = [key for key in KEYS if content[key] is None]
    print(f"{sidecar_path(args.weights)} written" + (f"; unknown: {', '.join(unknown)}" if unknown else ""))


if __name__ == "__main__":
    main()
