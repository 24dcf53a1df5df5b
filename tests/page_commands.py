"""Commands that stand on pages, word by word as bash reads them, and the check that each could start.

Nothing of a page is run here. bash gets a page's blocks with an empty PATH, so that each command is handed to a
function, which writes its words down; a check then asks whoever would take those words whether it knows them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.metadata
import inspect
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import fire
from fire import core, decorators
from monai import bundle as monai_bundle
from monai.bundle import ConfigParser

from custom_components.commands import console, discover, optimize, registrar
from custom_components.commands.bundles import find_bundle, overlay_path
from custom_components.commands.settings import typed_settings
from custom_components.commands.train import _SET_HERE
from custom_components.commands.words import checked, from_text
from custom_components.commands.workflow import as_list, check_settings

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS = discover()

# Commands of other programs, and why no check of ours reads their words.
OTHERS = {
    "docker": "another program",
    "apptainer": "another program",
    "dask": "dask.distributed's own command",
    "srun": "Slurm's command",
    "curl": "asks a server by its address",
    "cp": "the system's",
    "mkdir": "the system's",
    "pre-commit": "another program",
    "cd": "the shell's",
    "source": "the shell's",
}

# A block of code is commands if a line of it begins with one of these.
_BEGINS = re.compile(
    r"^ *(?:morphzoo|python[\d.]*|pip|make|docker|curl|\w+/bin/\w+|\$\w+|\w+=\S+|\w+=\"[^\"]*\")(?= |$)", re.MULTILINE
)

_RECORDER = r"""
PATH=/nowhere
command_not_found_handle() { printf '%s\0' "$@" >&3; printf '\1\0' >&3; }
for name in cd source; do eval "$name() { command_not_found_handle $name \"\$@\"; }"; done
"""


def blocks(text: str) -> list[str]:
    """The blocks of commands of a page: fenced as bash, or indented by four spaces."""
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [(match.start(), match[2]) for match in fences.finditer(text) if match[1] == "bash"]
    prose = fences.sub(lambda match: "." + "\n" * (len(match[0]) - 1), text)  # of the same length: the order stays
    indented = re.finditer(r"(?:^    .*\n)(?:(?:^    .*)?\n)*", prose + "\n", re.MULTILINE)
    found += [(match.start(), match[0]) for match in indented if _BEGINS.search(match[0])]
    return [block for _, block in sorted(found)]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a page's blocks; `[--option 3]`, which may be left out, is there.

    Raises:
        ValueError: if bash cannot read a block, or a variable or program in it is unknown.
    """
    script = _RECORDER + "\n".join(re.sub(r" \[(-[^]]*)\]", r" \1", block) for block in blocks(text))
    script = re.sub(r"(?m)(^|[ =])\w*/?bin/(?=python|pip|morphzoo)", r"\1", script)
    script = re.sub(r" ?< ?\S+$| ?> ?\S+$| &(?= *(?:#|$))", "", script, flags=re.MULTILINE)  # no file is made; in turn
    done = subprocess.run(
        ["bash", "-u", "-c", f"exec 3>&1 1>/dev/null\n{script}\nwait"], capture_output=True, text=True, cwd="/"
    )
    if done.returncode or done.stderr:
        raise ValueError(f"bash: {done.stderr.strip() or done.returncode}")
    found: list[list[str]] = [[]]
    for word in done.stdout.split("\0")[:-1]:
        if word == "\1":
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]


def check(words: Sequence[str]) -> None:
    """Raise an error if a command could not start because of its words."""
    program, *rest = words
    if program.startswith("python"):
        if rest[0] == "-m":
            check_module(rest[1], rest[2:])
        elif rest[0] not in ("-c", "-"):
            assert (REPOSITORY / rest[0]).is_file(), rest[0]
    elif program == "torchrun":
        at = rest.index("-m")
        check_module(rest[at + 1], rest[at + 2 :])
    elif program == "morphzoo":
        check_morphzoo(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "make":
        check_make(rest)
    else:
        assert program in OTHERS, f"{program}: what is it?"


def check_module(name: str, words: Sequence[str]) -> None:
    """`python -m name words`."""
    if name == "custom_components":
        check_morphzoo(words)
    elif name == "monai.bundle":
        check_monai(words)
    elif name.split(".")[0] in ("benchmarks", "data_lists"):
        check_program(name, words)
    else:
        assert name in ("venv", "pytest", "pip", "mkdocs"), name


def check_morphzoo(words: Sequence[str]) -> None:
    """Its command, flags, values, and the settings of the bundle that it would take."""
    _, words = console.split(words)
    if console.answer(words, COMMANDS) is not None:
        return
    name, *rest = checked(words, COMMANDS)
    command, taken = COMMANDS[name], {}

    @functools.wraps(command)
    def record(*args: object, **kwargs: object) -> None:
        taken.update(inspect.signature(command).bind(*args, **kwargs).arguments)

    flags = [re.fullmatch(r"--([\w:#]+)=(.*)", word, re.DOTALL) for word in rest]
    positional = [ast.literal_eval(word) for word, flag in zip(rest, flags, strict=True) if flag is None]
    from_text(record)(*positional, **{flag[1]: ast.literal_eval(flag[2]) for flag in flags if flag})
    _SETTINGS.get(words[0], _of_inference)(words[0], taken)


def _given(command: str, taken: dict[str, object]) -> dict[str, object]:
    """A call's settings, beside those that the command names itself."""
    parameters = inspect.signature(COMMANDS[command]).parameters
    named = [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
    return dict(taken.get(named[0], {})) if named else {}


def _of_inference(command: str, taken: dict[str, object]) -> None:
    parameters = inspect.signature(COMMANDS[command]).parameters
    if "bundle" in parameters:
        bundle = find_bundle(str(taken.get("bundle", parameters["bundle"].default)))
        overlays = [*as_list(taken.get("overlay", ())), *(overlay_path(name) for name in _OVERLAYS.get(command, ()))]
        check_settings(bundle, overlays, _given(command, taken), 3)


def _of_register(command: str, taken: dict[str, object]) -> None:
    """`register` and `optimize` themselves, up to the pair."""
    taken = {**taken, **_given(command, taken)}
    taken.pop("settings", None)
    with mock.patch.object(registrar.Registrar, "__call__", return_value=None):
        COMMANDS[command](**taken)


def _of_training(command: str, taken: dict[str, object]) -> None:
    given = _given(command, taken)
    assert not set(given) & set(_SET_HERE)
    root = find_bundle(str(taken.get("bundle", "voxelmorph")))
    typed_settings(root.name, ConfigParser.load_config_file(root / "configs" / "train.json"), given)


def _of_preparation(command: str, taken: dict[str, object]) -> None:
    config = ConfigParser.load_config_file(REPOSITORY / "bundles" / "prepare" / "configs" / "prepare.json")
    typed_settings("prepare", config, _given(command, taken))


def _of_template(command: str, taken: dict[str, object]) -> None:
    optimize.training_free(taken.get("model"))
    _of_inference(command, taken)


def _of_export(command: str, taken: dict[str, object]) -> None:
    find_bundle(str(taken["bundle"]))
    assert set(_given(command, taken)) <= {"for", "zip"}


def _of_citation(command: str, taken: dict[str, object]) -> None:
    find_bundle(str(taken["bundle"]))


def _of_nothing(command: str, taken: dict[str, object]) -> None:
    """`info` looks at what is there."""


# Overlays that a command adds.
_OVERLAYS = {
    "evaluate": ["evaluate"],
    "propagate": ["propagate"],
    "template": ["fields_only"],
    "longitudinal": ["longitudinal", "fields_only"],
}

_SETTINGS: dict[str, Callable[[str, dict[str, object]], None]] = {
    "register": _of_register,
    "optimize": _of_register,
    "train": _of_training,
    "prepare": _of_preparation,
    "template": _of_template,
    "export": _of_export,
    "cite": _of_citation,
    "info": _of_nothing,
}


def check_monai(words: Sequence[str]) -> None:
    """`python -m monai.bundle`: config files that are there, and no id that they do not have."""
    name, flags = words[0], dict(zip(words[1::2], words[2::2], strict=True))
    assert all(flag.startswith("--") for flag in flags), flags
    values = {flag[2:]: value for flag, value in flags.items()}
    known = set(inspect.signature(getattr(monai_bundle, name)).parameters)
    if name != "run":
        assert set(values) <= known, set(values) - known
        return
    files = values["config_file"]
    listed = re.findall(r"[^\[\]',]+", files) if files.startswith("[") else [files]
    root = Path(values.get("bundle_root", "bundles/voxelmorph"))  # any exported folder has such configs
    folders = [REPOSITORY, REPOSITORY / root] if not listed[0].startswith("bundles/") else [REPOSITORY]
    found = [next((folder / file for folder in folders if (folder / file).is_file()), None) for file in listed]
    assert all(found), f"{listed}: is there no such file?"
    config = ConfigParser.load_config_files([str(path) for path in found])
    assert (REPOSITORY / root).is_dir(), root
    for key, value in values.items():
        outer, _, inner = key.replace("::", "#").rpartition("#")
        if key in known - {"override"} or (inner and _takes_any(config, outer)):
            continue
        try:
            typed_settings(root.name, config, {key: value})
        except ValueError as error:
            if "is no setting but a part" not in str(error):
                raise


def _takes_any(config: dict[str, object], id: str) -> bool:
    """Whether an id is a mapping of names to parts, to which more can be added."""
    found: object = config
    for key in id.split("#"):
        found = found.get(key) if isinstance(found, dict) else None
    return isinstance(found, dict) and "_target_" not in found and bool({"network", "write"} & found.keys())


class _Parsed(Exception):
    """A program's words are read; it would start now."""


def check_program(name: str, words: Sequence[str]) -> None:
    """A program of this repository, up to where it has read its words."""
    source = REPOSITORY.joinpath(*name.split(".")).with_suffix(".py").read_text()
    if "sys.argv" in source:
        assert not words, f"{name} reads its words in a way of its own"
        return

    def parsing(parse: Callable[..., object]) -> Callable[..., None]:
        def parse_only(*args: object, **kwargs: object) -> None:
            parse(*args, **kwargs)
            raise _Parsed

        return parse_only

    def refuse(self: argparse.ArgumentParser, message: str) -> None:
        raise ValueError(f"{name}: {message}")

    parser = argparse.ArgumentParser
    with (
        mock.patch.object(parser, "parse_args", parsing(parser.parse_args)),
        mock.patch.object(parser, "parse_intermixed_args", parsing(parser.parse_intermixed_args)),
        mock.patch.object(parser, "error", refuse),
        mock.patch.object(fire, "Fire", functools.partial(_check_fire, name, words)),
        mock.patch.object(sys, "argv", [name, *words]),
    ):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=False)
        except _Parsed:
            return
        except SystemExit as stop:
            raise ValueError(stop.code) from stop
    raise AssertionError(f"{name} never reads its words")


def _check_fire(name: str, words: Sequence[str], component: object) -> None:
    rest = list(words)
    try:
        if inspect.isclass(component):  # whose flags stand among those of its command
            rest = _fire_reads(component, rest)
            component = getattr(object.__new__(component), rest.pop(0))
        elif isinstance(component, dict):
            component = component[rest.pop(0)]
        rest = _fire_reads(component, rest)
    except core.FireError as error:
        raise ValueError(f"{name}: {error}") from error
    if rest:
        raise ValueError(f"{name} takes no {rest[0]}")
    raise _Parsed


def _fire_reads(component: object, words: list[str]) -> list[str]:
    """The words that a component leaves over."""
    _, _, rest, _ = core._MakeParseFn(component, decorators.GetMetadata(component))(words)
    return list(rest)


def check_pip(words: Sequence[str]) -> None:
    """`pip install`: files that are there, and extras of this package that it has."""
    assert words[0] == "install"
    extras = set(importlib.metadata.metadata("morphzoo").get_all("Provides-Extra"))
    for before, word in itertools.pairwise(words):
        if before in ("-c", "-r"):
            assert (REPOSITORY / word).is_file(), word
        named = re.search(r"^(?:\.|morphzoo|.*\.whl)\[([\w,]+)\]", word)
        if named:
            assert set(named[1].split(",")) <= extras, word


def check_make(words: Sequence[str]) -> None:
    """Targets and variables that the Makefile has."""
    makefile = (REPOSITORY / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{name} \?=|\$\({name}\)" if equals else rf"^{name}:", makefile, re.MULTILINE), word
