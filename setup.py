"""Puts the bundles into wheels: every folder of `bundles/` is found by itself, the rest is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

SHARED = Path("share/morphzoo")
KINDS = (
    "configs/*.json",
    "docs/*.*",
    "models/*.pt",
    "models/*.json",
    "models/*.nii.gz",
    "models/*.csv",
    "*.json",
)  # the last: overlays

files = [(str(SHARED), ["LICENSE"])]
for folder in sorted(path for path in Path("bundles").iterdir() if path.is_dir()):
    for kind in KINDS:
        found = sorted(str(path) for path in folder.glob(kind))
        if found:
            files.append((str(SHARED / Path(found[0]).parent), found))

setup(data_files=files)
