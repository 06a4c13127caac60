"""mypy, in its strictest mode, sees the types that the stubs promise, and finds the mistakes that it should find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api", reason="mypy is not installed: pip install mypy")

HERE = Path(__file__).parent
SOURCE = HERE / "public_api.py"


def found(*options: str) -> list[tuple[int, str]]:
    """(line, code) of every error that mypy reports in the file."""
    cache = "--cache-dir=/dev/null"
    output, complaints, _ = api.run(["--strict", "--config-file=", "--no-error-summary", cache, *options, str(SOURCE)])
    assert not complaints, complaints
    errors = [
        match
        for line in output.splitlines()
        if (match := re.fullmatch(r"(.+?):(\d+): error: (.+)  \[([\w-]+)\]", line)) is not None
    ]
    elsewhere = [match[0] for match in errors if Path(match[1]).name != SOURCE.name]
    assert not elsewhere, "\n".join(elsewhere)
    return sorted((int(match[2]), match[4]) for match in errors)


def test_types_and_mistakes_are_exactly_as_the_file_says() -> None:
    expected = {
        number: match[1].split("|")
        for number, line in enumerate(SOURCE.read_text().splitlines(), 1)
        if (match := re.search(r"# error: ([\w|-]+)$", line)) is not None
    }
    assert len(expected) > 10
    errors = found()
    assert [number for number, _ in errors] == sorted(expected), errors
    for number, code in errors:
        assert code in expected[number], f"line {number}: {code}, expected {expected[number]}"
