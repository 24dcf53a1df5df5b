"""What every command of the command line has: --quiet, --verbose, --json, and `morphzoo --version`, `--completion`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .. import __version__
from .manual import asked

FLAGS = ("quiet", "verbose", "json")
SHELLS = ("bash", "zsh", "fish")
_NOISY = ("ignite", "monai", "py.warnings", "nibabel", "matplotlib")


@dataclasses.dataclass(frozen=True)
class Console:
    """How much a command says, and how.

    Args:
        quiet: warnings and errors alone, no progress, no result.
        verbose: also what the libraries say, and the whole traceback of an error.
        json: the result as a JSON document, the only thing on standard output.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if self.quiet and (self.verbose or self.json):
            raise ValueError(f"--quiet and --{'verbose' if self.verbose else 'json'} exclude each other")

    def begin(self) -> None:
        """Set up the logs and the progress bars of this process and of those that it starts."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if self.quiet:
            logging.getLogger().setLevel(logging.WARNING)
            os.environ["TQDM_DISABLE"] = "1"
        if self.verbose:
            os.environ["MORPHZOO_DEBUG"] = "1"
            return
        for noisy in _NOISY:
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Keep the standard output free of what a command says while it works, if something else is wanted there."""
        with contextlib.ExitStack() as stack:
            if self.quiet:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            elif self.json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield

    def show(self, result: object) -> None:
        """Print what a command returned."""
        if self.json:
            print(json.dumps(plain(result), indent=1))
        elif not self.quiet:
            print(*(result if isinstance(result, list) else [result]), sep="\n")


def split(words: Sequence[str]) -> tuple[Console, list[str]]:
    """The console that the words ask for, and the other words.

    Raises:
        ValueError: if the flags exclude each other.
    """
    asked = {name: f"--{name}" in words for name in FLAGS}
    return Console(**asked), [word for word in words if word not in {f"--{name}" for name in FLAGS}]


def answer(words: Sequence[str], commands: Mapping[str, Callable[..., object]]) -> str | None:
    """What `--help`, `--version` and `--completion [SHELL]` print; None if the words are a command to run.

    Raises:
        ValueError: if there is no completion for this shell.
    """
    if words[:1] == ["--version"]:
        return f"morphzoo {__version__}"
    if words[:1] == ["--completion"]:
        return completion(words[1] if len(words) > 1 else Path(os.environ.get("SHELL", "bash")).name, commands)
    return asked(words, commands)


def completion(shell: str, commands: Mapping[str, Callable[..., object]]) -> str:
    """A script that completes commands, flags, and files, for the shell to evaluate.

    Args:
        shell: "bash", "zsh" or "fish".
        commands: by name.
    Raises:
        ValueError: if it is another shell.
    """
    from fire import completion as of_fire

    if shell not in SHELLS:
        raise ValueError(f"there is no completion for {shell!r}; there is for {', '.join(SHELLS)}")
    text: str = of_fire.Script(
        "morphzoo", dict(commands), {f"--{name}" for name in FLAGS}, shell="fish" if shell == "fish" else "bash"
    )
    if shell == "zsh":
        text = f"autoload -U +X bashcompinit && bashcompinit\n{text}"
    return text.replace("complete -F", "complete -o default -F")  # files, where no flag begins like the word


def plain(value: object) -> object:
    """A result as JSON has it: what its `repr` would show, paths as texts, numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None  # NaN is not smaller, either
    listed = getattr(value, "tolist", None)  # of arrays and tensors
    return str(value) if listed is None else plain(listed())


def stop(message: str, code: int = 1) -> None:
    """End the process with one line on standard error."""
    print(message, file=sys.stderr)
    sys.exit(code)
