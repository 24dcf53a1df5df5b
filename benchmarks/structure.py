"""The house in numbers: lengths, widths, documentation, complexity and imports between rooms, of any checkout.

    python -m benchmarks.structure [CHECKOUT] [--worst 10]

It reads files only and needs nothing but the standard library, so that it runs on every commit. Definitions: files that
hold a docstring and nothing else do not count; a function's lines are those from `def` on without its docstring;
constructor arguments are those of `__init__` without self, and the fields of a dataclass; public means that no part of
the name starts with an underscore; complexity is radon's (one more than the branches, each function by itself). A line
of a config is pasted if it also stands, spaces apart, in another bundle's config of that name; lines without a letter
or digit do not count. A room is a sub-package of `custom_components`, a method, or a module beside them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "custom_components"
Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


@dataclass
class Measures:
    """What one checkout has; names of the single items are "file:line name"."""

    files: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    constructors: dict[str, int] = field(default_factory=dict)
    complexity: dict[str, int] = field(default_factory=dict)
    documented: dict[str, bool] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    any_lines: int = 0
    comment_lines: int = 0
    test_lines: int = 0
    arrows: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def lines(self) -> int:
        return sum(self.files.values())


def measure(checkout: Path) -> Measures:
    """Measure the package and count the tests' lines."""
    found = Measures()
    for path in sorted((checkout / PACKAGE).rglob("*.py")):
        _add_file(found, path, path.relative_to(checkout / PACKAGE))
    found.test_lines = sum(_count_lines(path) for path in (checkout / "tests").rglob("*.py"))
    return found


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _add_file(found: Measures, path: Path, name: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if len(tree.body) > (ast.get_docstring(tree) is not None):
        found.files[str(name)] = len(text.splitlines())
    found.comment_lines += sum(line.lstrip().startswith("#") for line in text.splitlines())
    found.any_lines += sum(re.search(r"\bAny\b", line) is not None for line in text.splitlines())
    for node, names in _definitions(tree, ()):
        _add_definition(found, node, names, str(name))
    for target in _imports(tree, name):
        found.arrows[_room(name), target] += 1


def _definitions(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[Function | ast.ClassDef, tuple[str, ...]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            yield child, (*names, child.name)
            yield from _definitions(child, (*names, child.name))
        else:
            yield from _definitions(child, names)


def _add_definition(found: Measures, node: Function | ast.ClassDef, names: tuple[str, ...], file: str) -> None:
    key = f"{file}:{node.lineno} {'.'.join(names)}"
    found.documented[key] = ast.get_docstring(node) is not None
    if not any(part.startswith("_") for part in names):
        found.public.add(key)
    if isinstance(node, ast.ClassDef):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            found.constructors[key] = len(fields)
        return
    found.functions[key] = _length(node)
    found.complexity[key] = 1 + sum(_branches(child) for child in _own_nodes(node))
    if node.name == "__init__":
        found.constructors[key] = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1


def _length(node: Function) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions within it, which are counted by themselves."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield from _own_nodes(child)


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))


def _room(name: Path) -> str:
    """The sub-package of a file of the package; a method is a room of its own."""
    parts = name.with_suffix("").parts
    return "/".join(parts[:2]) if parts[0] == "methods" and len(parts) > 2 else parts[0]


def _imports(tree: ast.AST, name: Path) -> Iterator[str]:
    """The other rooms that a file imports from, once for each name imported."""
    here = [PACKAGE, *name.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            base = [*start, *([] if node.module is None else node.module.split("."))]
            modules = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == PACKAGE and len(parts) > 1:
                target = _room(Path(*parts[1:], "x") if parts[1] == "methods" else Path(parts[1]))
                if target != _room(name):
                    yield target


def find_circles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of rooms that import one another, directly or in a circle; none in a well-built house."""
    reach: dict[str, set[str]] = defaultdict(set)
    for start, end in arrows:
        reach[start].add(end)
    rooms = set(reach)
    for via in rooms:
        for start in rooms:
            if via in reach[start]:
                reach[start] |= reach[via]
    groups = {frozenset(b for b in rooms if b in reach[a] and a in reach[b]) for a in rooms}
    return sorted(sorted(group) for group in groups if group)


def pasted_share(checkout: Path, pattern: str) -> tuple[list[int], float]:
    """Lines of each bundle's configs of a name, and the share of lines that also stand in another bundle's."""
    texts = {path: _lines_of(path) for path in sorted((checkout / "bundles").glob(f"*/configs/{pattern}"))}
    bundles = Counter(line for lines in texts.values() for line in set(lines))
    total = sum(len(lines) for lines in texts.values())
    pasted = sum(bundles[line] > 1 for lines in texts.values() for line in lines)
    return [_count_lines(path) for path in texts], pasted / max(total, 1)


def _lines_of(path: Path) -> list[str]:
    json.loads(path.read_text(encoding="utf-8"))
    stripped = (line.strip().rstrip(",") for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if any(character.isalnum() for character in line)]


def spread(values: Sequence[int]) -> str:
    """Median / 90 % / largest."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.9 * (len(ordered) - 1) + 0.5)]} / {ordered[-1]}"


def table(checkout: Path, found: Measures) -> list[tuple[str, str]]:
    """Rows of name and value."""
    public = [documented for key, documented in found.documented.items() if key in found.public]
    train, pasted = pasted_share(checkout, "train.json")
    circles = find_circles(found.arrows)
    return [
        ("files", str(len(found.files))),
        ("lines", str(found.lines)),
        ("lines of a file, median / 90 % / max", spread(list(found.files.values()))),
        ("lines of a function", spread(list(found.functions.values()))),
        ("constructor arguments", spread(list(found.constructors.values()))),
        ("complexity", spread(list(found.complexity.values()))),
        ("public names documented", f"{100 * sum(public) / len(public):.0f} %"),
        ("all names documented", f"{100 * sum(found.documented.values()) / len(found.documented):.0f} %"),
        ("lines that are comments", f"{100 * found.comment_lines / found.lines:.1f} %"),
        ("lines of tests / of source", f"{found.test_lines / found.lines:.2f}"),
        ("lines with Any", str(found.any_lines)),
        ("lines of train.json, mean (max)", f"{statistics.mean(train):.0f} ({max(train)})" if train else "-"),
        ("pasted lines of train.json", f"{100 * pasted:.0f} %"),
        ("rooms, arrows between them", f"{len({r for a in found.arrows for r in a})}, {len(found.arrows)}"),
        ("circles", "; ".join(" <-> ".join(circle) for circle in circles) or "none"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--worst", type=int, default=0, help="also list this many of the largest of each kind")
    args = parser.parse_args()
    found = measure(args.checkout)
    for name, value in table(args.checkout, found):
        print(f"{name:40} {value}")
    for name in ("files", "functions", "constructors", "complexity") if args.worst else ():
        print(f"\n{name}")
        largest = sorted(getattr(found, name).items(), key=lambda item: -item[1])
        for key, value in largest[: args.worst]:
            print(f"{value:6} {key}")


if __name__ == "__main__":
    main()
