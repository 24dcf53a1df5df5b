"""The `morphzoo` command: it finds the commands, and prints their results or one line for an error."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from .commands import discover
from .commands.console import Console, answer, split, stop
from .commands.words import checked, from_text
from .memory import ask_for_large_pages
from .runs import sentence


def main() -> None:
    """Entry point of the console script."""
    import fire

    ask_for_large_pages()
    try:
        console, words = split(sys.argv[1:])
        console.begin()
        commands = discover()
        told = answer(words, commands)
        if told is not None:
            print(told)
            return
        table = {name: _showing(from_text(command), console) for name, command in commands.items()}
        fire.Fire(table, command=checked(words, commands), name="morphzoo")
    except KeyboardInterrupt:
        stop("morphzoo: interrupted", 130)
    except BrokenPipeError:  # who read the output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("MORPHZOO_DEBUG"):
            raise
        sys.exit(f"morphzoo: error: {sentence(error)}")


def _showing(command: Callable[..., object], console: Console) -> Callable[..., None]:
    """The command as the command line has it: what the function returns is shown."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        with console.aside():
            result = command(*args, **kwargs)
        console.show(result)

    return run


if __name__ == "__main__":
    main()
