"""The `morphzoo` command: it finds the commands, and prints their results or one line for an error."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable

from .commands import discover
from .commands.words import checked, from_text
from .memory import ask_for_large_pages
from .runs import sentence


class Commands(dict[str, Callable[..., object]]):
    """Learned deformable image registration. `morphzoo COMMAND --help` describes a command.

    Errors are one line; with the environment variable MORPHZOO_DEBUG set to 1 they show the whole traceback.
    """


def main() -> None:
    """Entry point of the console script."""
    import fire

    ask_for_large_pages()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("ignite", "monai", "py.warnings", "nibabel", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    commands = discover()
    try:
        words = checked(sys.argv[1:], commands)
        table = Commands({name: _printing(from_text(command)) for name, command in commands.items()})
        fire.Fire(table, command=words, name="morphzoo")
    except KeyboardInterrupt:
        sys.exit("morphzoo: interrupted")
    except Exception as error:
        if os.environ.get("MORPHZOO_DEBUG"):
            raise
        sys.exit(f"morphzoo: error: {sentence(error)}")


def _printing(command: Callable[..., object]) -> Callable[..., None]:
    """The command as the command line has it: it prints what the function returns."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        result = command(*args, **kwargs)
        print(*(result if isinstance(result, list) else [result]), sep="\n")

    return run


if __name__ == "__main__":
    main()
