"""Every Python example of the README, the documentation and the docstrings runs and says the truth.

One test per document: its examples run top to bottom in one namespace, in an empty directory of
their own.  A block written as a console session (``>>>``) also has its output compared.  A block
that cannot run here is marked for the reader of the source: ``<!-- skip: next "the reason" -->``.
"""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import mmapds

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "docs" / "_build"
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if BUILT not in path.parents),
]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(mmapds.__path__, "mmapds.") if not module.name.endswith(".__main__")
)
FLAGS = doctest.ELLIPSIS
SYBIL = Sybil([PythonCodeBlockParser(doctest_optionflags=FLAGS), SkipParser()])


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_examples(path: Path) -> None:
    for example in SYBIL.parse(path).examples():
        example.evaluate()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_example_hides_from_the_test_above(path: Path) -> None:
    """Blocks of Python are marked ``python``: any other name for it would not be run."""
    fences = re.findall(r"^[ \t]*(?:```+|~~~+)[ \t]*(\S+)", path.read_text("utf-8"), re.MULTILINE)
    assert not {"py", "pycon", "python3", "py3", "{doctest}"}.intersection(fences)


def test_the_table_of_faults_names_its_tests() -> None:
    """Under each number stand exactly the tests that begin with it (with the first, if there are several)."""
    tests = ROOT / "tests"
    rows: dict[int, dict[str, list[str]]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        for found in re.finditer(r"^def (test_r(\d\d)_\w+)", path.read_text("utf-8"), re.MULTILINE):
            rows.setdefault(int(found[2]), {}).setdefault(str(path.relative_to(tests)), []).append(f"`{found[1]}`")
    lines = []
    for number, files in sorted(rows.items()):
        lines.append(f"- **{number}**")
        lines += [f"  - {file}: {', '.join(names)}" for file, names in files.items()]
    page = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    listed = page.partition("### Their tests\n")[2].splitlines()
    assert [line for line in listed if line.lstrip().startswith("- ")] == lines, "\n".join(
        ["these lines belong under 'Their tests' in docs/guarantees.md:", *lines]
    )
    described = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert described == set(rows)


@pytest.mark.parametrize("module", ["mmapds", *MODULES])
def test_docstrings(module: str) -> None:
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module)):
        runner.run(test)
    assert runner.failures == 0
