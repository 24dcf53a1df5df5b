"""Each command of README and docs could start, and is run: here, by another test, or a reason says why not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from page_commands import REPOSITORY, blocks, check, commands
from support import run

from custom_components.data.phantoms import write_phantom_scans

pytestmark = [pytest.mark.filterwarnings("ignore:.* found in sys.modules"), pytest.mark.filterwarnings("ignore:Can't")]

DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = [
    *DOCS,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "data_lists" / "README.md",
    *sorted(REPOSITORY.glob("bundles/*/docs/README.md")),
]
WHOLE = {"docs/add_a_method.md": "tests/test_add_a_method.py"}  # a test runs the page from its first line to its last

# Beginnings of commands that run here, on phantoms, as they stand there, but in one process.
REGISTER = "morphzoo register moving.nii.gz fixed.nii.gz -o out"
HERE = (
    rf"{REGISTER}(?: --write_as .*| --stages affine .*| --affine .*)?$",
    rf"{REGISTER} --bundle (?:avsm|hypermorph --hyper .*|voxelmorph .*)$",
    r"morphzoo optimize moving.nii.gz fixed.nii.gz -o out$",
    *(f"morphzoo {name} " for name in ("apply", "convert", "strip", "cite")),
    r"morphzoo longitudinal first.nii.gz second.nii.gz -o change$",
    r"morphzoo propagate atlas.nii.gz,labels.nii.gz --to list.json -o propagated$",
    r"morphzoo evaluate list.json -o evaluated$",
    r"morphzoo (?:info|--version|--completion bash)",
    r"morphzoo export voxelmorph -o exported --zip$",
    r"python -m data_lists.build folder DIR",
)

# Those that do not: the file of tests that runs the same on small images, or a reason.
ELSEWHERE = {
    r"morphzoo evaluate list.json .*--scheduler": "cohorts/test_propagation.py",
    r"morphzoo evaluate list.json .*--compare": "evaluation/test_report.py",
    r"morphzoo evaluate": "commands/test_cohort.py",
    r"morphzoo propagate": "cohorts/test_propagation.py",
    r"morphzoo template": "cohorts/test_template.py",
    r"morphzoo prepare": "commands/test_prepare.py",
    r"morphzoo train": "commands/test_train.py",
    r"morphzoo subtract": "methods/subtraction/test_subtract.py",
    r"morphzoo tune": "commands/test_tune.py",
    r"morphzoo segment": "methods/brain_extraction/test_atlases.py",
    r"morphzoo optimize .*--model|morphzoo register .*--samples": "commands/test_register.py",
    r"morphzoo register .*--stages": "commands/test_stages.py",
    r"morphzoo register .*--page volumes": "evaluation/test_report.py",
    r"morphzoo register .*--sweep": "commands/test_hyper_parameters.py",
    r"morphzoo atlas": "commands/test_atlas.py",
    r"morphzoo longitudinal": "cohorts/test_longitudinal_page.py",
    r"morphzoo optimize .*--bundle rdmm": "commands/test_register.py",
    r"morphzoo register .*--bundle rdmm": "bundles/test_inference.py",
    r"morphzoo optimize .*--similarity": "commands/test_similarity.py",
    r"morphzoo register .*--bundle \w+(?: --optimize 0)?$": "bundles/test_inference.py",
    r"morphzoo register .*--guide_moving": "commands/test_guides.py",
    r"morphzoo export .*--formats": "commands/test_network_files.py",
    r"morphzoo export .*--for monai-label": "commands/test_monai_label.py",
    r"morphzoo export .*--for hub|python -m monai.bundle push_to_hf_hub": "commands/test_hub.py",
    r"python -m monai.bundle download .*huggingface_hub": "commands/test_hub.py",
    r"morphzoo export brain_extraction": "commands/test_export.py",
    r"python -m monai.bundle run .*train": "bundles/test_training.py",
    r"torchrun": "bundles/test_variants.py",
    r"python -m monai.bundle run .*inference.json": "bundles/test_inference.py",
    r"python -m monai.bundle download|cd DIR/": "commands/test_export.py",
    r"python -m data_lists.build": "data_lists/test_build.py",
    r"python docs/monai_label_server.py|curl .*127.0.0.1": "commands/test_monai_label_server.py",
}
WHY_NOT = {
    r"make (?:demo|wheel)|pip install|python\S* -m venv": "installs packages: CI runs the installation",
    r"make (?:lint|test)": "it is what runs this test",
    r"make gpu|python -m pytest -m gpu|python -m benchmarks.(?:gpu|device_)": "needs a GPU to say anything",
    r"python -m benchmarks": "takes minutes, or data that are not in the repository; tests/benchmarks/ runs parts",
    r"python -m data_lists.align": "needs label maps that are not in the repository",
    r"dask|srun": "needs a cluster",
    r"mkdir|cp": "the system's",
}


# Pages with examples in Python, and the tests that run them.
PYTHON = {
    "README.md": "test_readme.py",
    "docs/python.md": "test_python_page.py",
    "docs/add_a_method.md": "test_add_a_method.py",
    "docs/model_zoo.md": "commands/test_network_files.py",
    "docs/cohort.md": "no test: it needs a cluster of SLURM",
}


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def listed() -> list[str]:
    """Each command of README and docs once, in their order."""
    pages = [page for page in DOCS if name_of(page) not in WHOLE]
    return list(dict.fromkeys(shlex.join(words) for page in pages for words in commands(page.read_text())))


def matching(text: str) -> list[str]:
    """The entries that a command is listed under."""
    words = " ".join(shlex.split(text))
    return [entry for entry in (*HERE, *ELSEWHERE, *WHY_NOT) if re.match(entry, words)]


def runs_here(text: str) -> bool:
    return matching(text)[:1] != [] and matching(text)[0] in HERE


def all_could_start(text: str) -> None:
    for words in commands(text):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{shlex.join(words)}\n{type(error).__name__}: {error}") from error


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in WHOLE], ids=name_of)
def test_every_command_could_start(page):
    all_could_start(page.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "morphzoo registre moving.nii.gz fixed.nii.gz",
        "morphzoo register moving.nii.gz -o out",
        "morphzoo register moving.nii.gz fixed.nii.gz --bundel avsm",
        "morphzoo register moving.nii.gz fixed.nii.gz --bundle avms",
        "morphzoo register moving.nii.gz fixed.nii.gz --hyper 0.3",
        "morphzoo register moving.nii.gz fixed.nii.gz --spacing wide",
        "morphzoo register moving.nii.gz fixed.nii.gz --stages bent",
        "morphzoo register moving.nii.gz fixed.nii.gz \\\n  --page volumes --pages volumes",
        "morphzoo optimize moving.nii.gz fixed.nii.gz --model fast",
        "morphzoo evaluate list.json --jbos 4",
        "morphzoo template list.json --model fast",
        "morphzoo train prepared --num_pears 3",
        "morphzoo prepare DIR --spaces 2",
        "morphzoo export voxelmorph --as zip",
        "python -m custom_components info --all",
        "train='python -m monai.bundle run --bundle_root bundles/avsm'\n$train --config_file configs/no.json",
        "B=bundles/avsm\npython -m monai.bundle run --bundle_root $B --config_file $B/configs/train.json --epochs 3",
        "python -m monai.bundle run --bundle_root bundles/avsm --config_file $CONFIG",
        "python -m monai.bundle download --name x --uri file:///x.zip",
        "python -m benchmarks.weights --bundle voxelmorph --quick",
        "python -m benchmarks.nothing",
        "python -m data_lists.build folder DIR --images '{subject}.nii.gz' -o list.json",
        "pip install -e '.[demos]'",
        "pip install -c constraints-gpu.txt .",
        "make tests",
        "make test CONSTRANTS=",
        "morphzo register moving.nii.gz fixed.nii.gz",
        "morphzoo register 'moving.nii.gz fixed.nii.gz",
    ],
)
@pytest.mark.parametrize("form", ["```bash\n{}\n```\n", "Text.\n\n{}\n\nText.\n"], ids=["fenced", "indented"])
def test_a_wrong_command_is_found(line, form):
    if "{}\n\nText" in form:
        line = "    " + line.replace("\n", "\n    ")
        if not blocks(form.format(line)):
            pytest.skip("not the name of a program of ours: read as other code")
    with pytest.raises((AssertionError, ValueError, OSError)):
        all_could_start(form.format(line))


def test_right_commands_are_read_as_bash_reads_them():
    page = """
```bash
C=configs
morphzoo apply "out put/t.h5" $C/x.nii.gz moved.nii.gz \\
  --reference fixed.nii.gz   # a remark
```

    morphzoo info && morphzoo cite avsm > file.txt

```python
morphzoo = "no command"
```

    velocity = integrate(momentum)
"""
    assert commands(page) == [
        ["morphzoo", "apply", "out put/t.h5", "configs/x.nii.gz", "moved.nii.gz", "--reference", "fixed.nii.gz"],
        ["morphzoo", "info"],
        ["morphzoo", "cite", "avsm"],
    ]


def test_every_command_of_readme_and_docs_is_run_or_a_reason_says_why_not():
    found = {text: matching(text) for text in listed()}
    assert [text for text, entries in found.items() if not entries] == []
    used = {entries[0] for entries in found.values()}
    assert [entry for entry in (*HERE, *ELSEWHERE, *WHY_NOT) if entry not in used] == []
    for file in [*ELSEWHERE.values(), *(test.removeprefix("tests/") for test in WHOLE.values())]:
        assert (REPOSITORY / "tests" / file).is_file(), file


def test_examples_in_python_are_run():
    assert {name_of(page) for page in PAGES if "```python" in page.read_text()} == set(PYTHON)
    for page, test in PYTHON.items():
        if not test.startswith("no test"):
            assert Path(page).name in (REPOSITORY / "tests" / test).read_text().replace("README = ", page), page


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name: small phantoms, a list, and the first result."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_phantom_scans(folder, 4, (24, 28, 24), spacing_mm=2.0)
        names = {"moving": 0, "fixed": 1, "atlas": 2, "first": 0, "second": 1, "t1": 0, "t2": 1, "a": 2, "b": 3}
        for name, person in (names | {"scan": 0, "flair": 1}).items():
            shutil.copy(f"images/phantom_0{person}.nii.gz", f"{name}.nii.gz")
            shutil.copy(f"labels/phantom_0{person}.nii.gz", f"{name}_seg.nii.gz")
        for name, source in (("seg", "t1_seg"), ("labels", "atlas_seg"), ("atlas_labels", "atlas_seg")):
            shutil.copy(f"{source}.nii.gz", f"{name}.nii.gz")
        shutil.copytree("images", "scans")
        Path("DIR").mkdir()
        for person in range(4):
            for kind, name in (("images", "t1"), ("labels", "seg")):
                for copy in range(3):
                    shutil.copy(f"{kind}/phantom_0{person}.nii.gz", f"DIR/{person}{copy}_{name}.nii.gz")
        shutil.copy("datalist.json", "list.json")
        Path("points.csv").write_text("x,y,z\n1,2,3\n")
        Path("trained").mkdir()
        shutil.copy(REPOSITORY / "bundles/voxelmorph/models/model.pt", "trained")
        assert run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out") is None
        shutil.copy("out/fixed__moving/transform.h5", ".")
        pair = ("--moving", "moving.nii.gz", "--fixed", "fixed.nii.gz")
        assert run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "rigid", "--stages", "rigid") is None
        (rigid,) = Path("rigid").glob("*/transform.*")
        assert run("convert", rigid, "flirt.mat", "--dialect", "fsl", *pair) is None
        assert run("convert", rigid, "rigid.tfm", *pair) is None
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for text in listed() if runs_here(text)])
def test_it_runs(text, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    shutil.rmtree("exported", ignore_errors=True)
    words = shlex.split(re.sub(r"--jobs \d", "--jobs 1", text))
    if words[0] == "python":
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths}
        assert subprocess.check_output([sys.executable, *words[1:]], env=environment)
    else:
        assert run(*words[1:]) is None
        assert capsys.readouterr().out
