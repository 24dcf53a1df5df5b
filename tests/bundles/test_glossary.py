"""Every id of the configs stands in docs/glossary.md, once, with its meaning and unit."""

import re

from bundle_cases import EVERY_BUNDLE, REPOSITORY, read_json


def entries():
    text = (REPOSITORY / "docs" / "glossary.md").read_text()
    return re.findall(r"^\| `([^`]+)` \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)


def ids():
    paths = [path for path in (REPOSITORY / "bundles").rglob("*.json") if path.parent.name != "models"]
    paths = [path for path in paths if path.name != "metadata.json"]
    found = {name.lstrip("+").split("#")[0] for path in paths for name in read_json(path)}
    found |= {name for path in paths for name in read_json(path) if re.fullmatch(r"(train|validate)#\w+", name)}
    for bundle in EVERY_BUNDLE:
        config = read_json(bundle / "configs" / "train.json")
        found |= {f"{part}#{name}" for part in ("train", "validate") for name in config[part]}
    return found


def test_every_id_has_an_entry_and_every_entry_is_used():
    named = {name for name, _, _ in entries()}
    assert sorted(ids() - named) == []
    assert sorted(named - ids()) == []


def test_no_id_has_two_meanings():
    names = [name for name, _, _ in entries()]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_id_has_a_meaning_and_a_unit():
    assert all(meaning.strip() and unit.strip() for _, meaning, unit in entries())
