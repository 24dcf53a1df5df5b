"""The pages of `morphzoo --help` and `morphzoo COMMAND --help`, made of docstrings and signatures."""

from __future__ import annotations

import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence

Command = Callable[..., object]

TOPICS = {
    "Two scans": ("register", "optimize", "apply", "convert", "longitudinal"),
    "Many scans": ("evaluate", "template", "propagate", "atlas", "tune"),
    "Scans by themselves": ("strip", "segment", "subtract", "prepare"),
    "Networks": ("train", "export"),
    "About": ("demo", "info", "cite"),
}

_EVERY = (
    "Every command takes --quiet (warnings and errors alone), --verbose (also what the libraries say, and the whole "
    "traceback of an error) and --json (the result as JSON)."
)
_ABOUT = (
    "`morphzoo COMMAND --help` describes a command. `morphzoo --version` tells the version. `morphzoo --completion "
    "[bash|zsh|fish]` prints what a shell needs to complete commands and options. Exit codes: 0, all is done; 1, it "
    "failed, or some of many failed; 130, interrupted."
)
_SHORT = {"output": "-o, ", "bundle": "-b, "}


def asked(words: Sequence[str], commands: Mapping[str, Command]) -> str | None:
    """The page that the words of a command line ask for; None if they ask for none."""
    if not words or words[0] in ("--help", "-h", "help"):
        named = [word for word in words[1:] if word in commands]
        return page(named[0], commands[named[0]]) if named else overview(commands)
    if words[0] in commands and {"--help", "-h"} & {*words[1:]}:
        return page(words[0], commands[words[0]])
    return None


def overview(commands: Mapping[str, Command]) -> str:
    """All commands by topic, each with a sentence."""
    lines = ["morphzoo COMMAND ... - learned deformable image registration", ""]
    for topic, names in TOPICS.items():
        rows = {name: _paragraphs(commands[name])[0].partition(": ")[0] for name in names if name in commands}
        lines += [topic, *(line for name, text in rows.items() for line in _row(name, text, 16)), ""]
    return "\n".join([*lines, *_wrapped(_EVERY), "", *_wrapped(_ABOUT)])


def page(name: str, command: Command) -> str:
    """What a command does, takes, and how it is called.

    Args:
        name: of the command.
        command: its function, with a docstring in Google's style.
    """
    parameters = list(inspect.signature(command).parameters.values())
    texts = _described(_sections(command).get("Args", ""))
    words = [one for one in parameters if _is_word(one)]
    flags = [one for one in parameters if one not in words and one.kind is not inspect.Parameter.VAR_KEYWORD]
    needed = [_flag([one]).strip() for one in flags if one.default is inspect.Parameter.empty]
    parts = [[" ".join(["morphzoo", name, *map(_place, words), *needed, "[OPTIONS]"])]]
    parts += [_wrapped(text) for text in _paragraphs(command)]
    parts.append([line for one in words for line in _row(one.name.upper(), _text(one, texts), 12)])
    parts.append(["Options", *_options(flags, texts)])
    further = texts.get("settings", texts.get("options"))
    parts.append(_wrapped(f"Further options: {further}") if further else [])
    parts.append(_wrapped(_EVERY))
    parts.append(["Examples", *(f"  {line}" for line in examples(command))])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def examples(command: Command) -> list[str]:
    """The command lines in the section Examples of a command's docstring."""
    return re.findall(r"`(morphzoo .+?)`", _sections(command).get("Examples", ""))


def _sections(command: Command) -> dict[str, str]:
    """The sections of a docstring, by title; what stands before the first one has the title ""."""
    documented = inspect.getdoc(command) or ""
    parts = re.split(r"^(Args|Returns|Raises|Examples|References):\n", documented, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def _paragraphs(command: Command) -> list[str]:
    return [" ".join(part.split()) for part in _sections(command)[""].strip().split("\n\n")]


def _described(args: str) -> dict[str, str]:
    """What a section Args says of each name; names with commas between them share a text."""
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    (\*{0,2}\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", args, re.MULTILINE):
        found |= dict.fromkeys(names.replace("*", "").split(", "), " ".join(text.split()))
    return found


def _is_word(one: inspect.Parameter) -> bool:
    """Whether an argument is given by its place: it must be given, or begins the page."""
    if one.kind is inspect.Parameter.VAR_POSITIONAL:
        return True
    needed = one.default is inspect.Parameter.empty
    return one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and (needed or one.name != "output")


def _place(one: inspect.Parameter) -> str:
    """An argument as the first line has it."""
    if one.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"{one.name.upper()}..."
    return one.name.upper() if one.default is inspect.Parameter.empty else f"[{one.name.upper()}]"


def _options(flags: Sequence[inspect.Parameter], texts: Mapping[str, str]) -> list[str]:
    """A row for each option, and for options of one text."""
    alike = itertools.groupby(flags, lambda one: (_text(one, texts), _value(one)))
    return [line for (text, _), several in alike for line in _row(_flag(list(several)), text, 34)]


def _text(one: inspect.Parameter, texts: Mapping[str, str]) -> str:
    text = texts.get(one.name, "")
    if one.default is inspect.Parameter.empty:
        return text
    if one.default is None or one.default is False or one.default == () or "efault" in text:
        return text
    return f"{text.rstrip('.')} (default: {one.default})."


def _flag(several: Sequence[inspect.Parameter]) -> str:
    """Options that share a text, with their short form, and what they take."""
    value = _value(several[0])
    if value == "TEXT":
        value = several[0].name.upper() if len(several) == 1 else "FILE"
    names = ", ".join(f"{_SHORT.get(one.name, '')}--{one.name}" for one in several)
    return f"{'' if names[:2] in ('-o', '-b') else '    '}{names} {value}".rstrip()


def _value(one: inspect.Parameter) -> str:
    """What an option takes; empty for a switch, TEXT for a text."""
    kinds = str(one.annotation)
    parts = [part.strip() for part in kinds.split("|")]
    if parts[0] == "bool":
        return ""
    found = [sign for kind, sign in (("int", "N"), ("float", "X")) if kind in parts]
    found += ["A,B,..."] if any(part.startswith("Sequence") for part in parts) and "str" not in parts else []
    return "|".join([*found, *re.findall(r"Literal\[['\"](\w+)['\"]\]", kinds)]) or "TEXT"


def _row(name: str, text: str, indent: int) -> list[str]:
    """A name, and beside it, or below it if it is long, what it means."""
    lines = _wrapped(text, indent)
    if len(name) + 4 > indent:
        return [f"  {name}", *lines]
    return [f"  {name}".ljust(indent) + lines[0].strip(), *lines[1:]] if lines else [f"  {name}"]


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = max(60, min(110, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )
