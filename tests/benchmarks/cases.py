"""What several test files of this folder share."""

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = REPOSITORY / "bundles"


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiments = script(REPOSITORY / "benchmarks" / "experiments.py")
