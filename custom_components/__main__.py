"""The `morphzoo` command: register, optimize, evaluate, atlas, tune, apply, export, demo."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

from .commands.apply import apply
from .commands.atlas import atlas
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.register import optimize, register
from .commands.tune import tune
from .commands.workflow import PACKAGE


def _reason(error: BaseException) -> str:
    """One line: the outermost error in the chain that our own code raised, else the innermost one."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        frames = traceback.extract_tb(one.__traceback__)
        if frames and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE):
            return " ".join(str(one).split())
    return f"{type(chain[-1]).__name__}: {' '.join(str(chain[-1]).split())[:300]}"


def main() -> None:
    """Entry point of the console script."""
    import fire

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("ignite", "monai", "py.warnings", "nibabel", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # fire takes one letter only where it is unambiguous; -o is what everybody types.
    sys.argv = ["--output" if word == "-o" else word for word in sys.argv]
    commands = {"register": register, "optimize": optimize, "evaluate": evaluate, "tune": tune}
    commands |= {"atlas": atlas, "apply": apply, "export": export, "demo": demo}
    try:
        fire.Fire(commands, name="morphzoo", serialize=lambda result: None if result == {} else result)
    except KeyboardInterrupt:
        sys.exit("morphzoo: interrupted")
    except Exception as error:
        if os.environ.get("MORPHZOO_DEBUG"):
            raise
        sys.exit(f"morphzoo: error: {_reason(error)}")


if __name__ == "__main__":
    main()
