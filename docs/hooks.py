"""Pages of the site that are not in docs/: the README, notebooks, those of the bundles, and the reference.

Pages are written for a reader of the repository; here their links are turned to where the same page is on the site.
A link to a file that has no page there keeps its text alone, unless `repo_url` says where the repository can be read.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import custom_components as mz  # noqa: E402

ROOMS = ("deformations", "networks", "losses", "data", "synthesis", "space", "inference", "training", "evaluation")
PICTURES = {".png", ".gif", ".svg", ".webp"}


def bundles() -> dict[str, Path]:
    """Each bundle's page."""
    return {page.parents[1].name: page for page in sorted(REPOSITORY.glob("bundles/*/docs/README.md"))}


def notebooks() -> dict[str, str]:
    """Each notebook's title, by its name."""
    paths = sorted(REPOSITORY.glob("notebooks/*.ipynb"))
    return {path.stem: notebook_page(path).partition("\n")[0].removeprefix("# ") for path in paths}


def notebook_page(path: Path) -> str:
    """A notebook as a page: its texts, and its code in blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
    return "\n\n".join(parts) + "\n"


def places() -> dict[str, str]:
    """Pages and pictures outside of docs/, by their paths in the repository, and where they are on the site."""
    found = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
    found["data_lists/README.md"] = "data_lists.md"
    found |= {f"notebooks/{name}.ipynb": f"notebooks/{name}.md" for name in notebooks()}
    for name, page in bundles().items():
        found[f"bundles/{name}/docs/README.md"] = f"bundles/{name}.md"
        for picture in sorted(page.parent.iterdir()):
            if picture.suffix in PICTURES:
                found[f"bundles/{name}/docs/{picture.name}"] = f"bundles/{name}_{picture.name}"
    return found


def turned(text: str, source: str, target: str, site: dict[str, str], repository_url: str | None = None) -> str:
    """A page's text with its relative links as they must be on the site.

    Args:
        source: the page's path in the repository.
        target: its path on the site.
        site: paths in the repository and on the site of all that is there.
    """

    def turn(match: re.Match[str]) -> str:
        mark, shown, link = match.groups()
        path, hash_sign, anchor = link.partition("#")
        if not path or re.match(r"\w+:", link):
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if wanted in site:
            relative = posixpath.relpath(site[wanted], posixpath.dirname(target) or ".")
            return f"{mark}[{shown}]({relative}{hash_sign}{anchor})"
        return f"[{shown}]({repository_url.rstrip('/')}/blob/main/{wanted})" if repository_url else shown

    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        block if block.startswith("```") else re.sub(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s]+)\)", turn, block)
        for block in blocks
    )


def command_reference() -> str:
    """A page with all commands, from their docstrings."""
    text = "# Commands\n\nEach parameter is an option of the command line: `affine` is `--affine`. "
    text += "Those without a default are given by their order.\n`morphzoo COMMAND --help` says the same.\n\n"
    for name in mz._COMMANDS:
        text += f"## morphzoo {name}\n\n::: custom_components.commands.{name}.{name}\n"
        text += "    options: {show_root_heading: false}\n\n"
    return text


def python_reference() -> str:
    """A page with the public names that are no commands."""
    text = "# Python\n\n`import morphzoo as mz` gives these names, and the [commands](commands.md) as functions.\n\n"
    for name, place in mz._PLACES.items():
        if name not in mz._COMMANDS:
            text += f"::: custom_components.{place}.{name}\n\n"
    return text


def component_reference() -> str:
    """A page with what the configs of bundles are made of."""
    text = "# Components\n\nWhat configs name as `_target_`, room by room. [Python](python.md) has the public ones.\n\n"
    for room in ROOMS:
        text += f"## {room}\n\n"
        for module in sorted((REPOSITORY / "custom_components" / room).glob("*.py")):
            if not module.name.startswith("_") and f"{room}.{module.stem}" not in mz._PLACES.values():
                text += f"::: custom_components.{room}.{module.stem}\n\n"
    return text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the bundles and the notebooks into the table of contents."""
    lists = {"METHODS": [{name: f"bundles/{name}.md"} for name in bundles()]}
    lists["NOTEBOOKS"] = ["notebooks.md", *({title: f"notebooks/{name}.md"} for name, title in notebooks().items())]
    config.nav = [{name: lists.get(str(part), part) for name, part in entry.items()} for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is outside of docs/."""
    for source, target in places().items():
        path = REPOSITORY / source
        read: Any = {".ipynb": notebook_page} | dict.fromkeys(PICTURES, Path.read_bytes)
        content = read.get(path.suffix, lambda path: path.read_text(encoding="utf-8"))(path)
        files.append(File.generated(config, target, content=content))
    reference = {"commands": command_reference(), "python": python_reference(), "components": component_reference()}
    for name, text in reference.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links."""
    outside = places()
    site = {f"docs/{file.src_uri}": file.src_uri for file in files} | outside
    target = page.file.src_uri
    source = next((source for source, place in outside.items() if place == target), f"docs/{target}")
    return turned(markdown, source, target, site, config.repo_url)
