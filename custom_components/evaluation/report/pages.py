"""Fill the templates of pages. A page is one file: style, script and images are in it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ...results import replacing

FOLDER = Path(__file__).parent


def write_page(path: str | os.PathLike[str], template: str | os.PathLike[str], **values: object) -> None:
    """Write a page; a file there is replaced in one step.

    Args:
        path: of the page.
        template: its file, which extends `base.html` and may use the macros of `parts.html`; a bare name is one of the
            folder `templates`.
        **values: what the template shows, `title` among them. All texts are escaped but `markupsafe.Markup`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    template = Path(template)
    folders = [str(folder) for folder in (template.parent, FOLDER / "templates")]
    environment = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    environment.globals["style"] = Markup((FOLDER / "style.css").read_text("utf-8"))
    environment.globals["script"] = Markup((FOLDER / "page.js").read_text("utf-8"))
    text = environment.get_template(template.name).render(**values)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link(target: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """The address of a file on a page in a folder.

    Args:
        target: an absolute path, or one relative to the folder.
        folder: of the page; a relative one is meant from here.
    """
    target = Path(target)
    if target.is_absolute():
        target = Path(os.path.relpath(target, Path(folder).absolute()))
    return quote(target.as_posix())


def label_text(label: int | str, names: Mapping[int, str]) -> str:
    """A label as pages show it: its id, and its name if it has one."""
    name = names.get(int(label))
    return str(label) if name is None else f"{label} {name}"


def number(value: object) -> str:
    """A cell's text: numbers with four digits, lists of texts joined, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "n/a"
    if isinstance(value, list | tuple):
        return "; ".join(map(number, value))
    return "" if value is None else str(value)
