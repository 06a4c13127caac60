"""How commands speak: JSON, plain tables, rich ones, and text from files that nobody trusts."""

import dataclasses
import enum
import io
import json
import sys
import types
from pathlib import Path

import pytest

from mmapds.cli import output
from mmapds.cli.output import Output, Table


@dataclasses.dataclass
class Finding:
    severity: str
    where: str
    what: str


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_is_json_for_everything_that_a_command_may_say():
    class Colour(enum.Enum):
        RED = "red"

    said = {
        "bytes": b"\x00\xff",
        "view": memoryview(b"\x01"),
        "path": Path("/a/b"),
        "enum": Colour.RED,
        "dataclass": Finding("note", "x", "y"),
        "tuple": (1, (2.5, None)),
        "set": {7},
        "infinite": [float("inf"), float("nan")],
        "flag": True,
        1: "key",
    }
    assert json.loads(output.document(said)) == {
        "bytes": "00ff",
        "view": "01",
        "path": "/a/b",
        "enum": "red",
        "dataclass": {"severity": "note", "where": "x", "what": "y"},
        "tuple": [1, [2.5, None]],
        "set": [7],
        "infinite": [None, None],
        "flag": True,
        "1": "key",
    }
    with pytest.raises(TypeError, match="object has no form in JSON"):
        output.document({"a": object()})


def drawn(*parts: Table | str, stdout: io.StringIO | None = None) -> str:
    stdout = io.StringIO() if stdout is None else stdout
    Output(stdout=stdout).emit(None, *parts)
    return stdout.getvalue()


def test_plain_tables():
    table = Table(("name", "reads/s", "ok"), [("a", 1234567.8, True), ("long name", None, False)], "Rates")
    assert drawn(table, "Done.") == (
        "Rates\n"
        "name         reads/s  ok\n"
        "---------  ---------  ---\n"
        "a          1,234,568  yes\n"
        "long name          -  no\n"
        "\n"
        "Done.\n"
    )


def test_odd_tables():
    assert drawn(Table((), [])) == ""
    assert drawn(Table(("a", "b"), [])) == "a  b\n-  -\n"
    assert drawn(Table((), [(), ("x",), (1, 2.25)])) == "\nx\n1  2.25\n"


def test_facts_flatten_and_name_every_leaf():
    description = {
        "kind": "sync",
        "header": {"identity": b"\x01", "options": {}, "format": (1, 0)},
        "slots": [{"pid": 3}, {"pid": None}],
    }
    assert output.facts(description, "f").rows == [
        ("kind", "sync"),
        ("header.identity", "01"),
        ("header.options", "-"),
        ("header.format", "1, 0"),
        ("slots[0].pid", "3"),
        ("slots[1].pid", "-"),
    ]


def test_text_from_a_file_cannot_drive_the_terminal():
    hostile = "\x1b]0;owned\x07\n\udcff"
    shown = drawn(Table((), [("schema", hostile)], hostile), hostile)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\\udcff" in shown


def test_rich_only_on_a_terminal_that_allows_it(monkeypatch):
    table = Table(("a",), [("[red]b[/red]",)], "T")
    plain = drawn(table)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drew = []
    monkeypatch.setattr(Output, "_draw_rich", lambda self, table: drew.append(table))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rich", types.ModuleType("rich"))
        drawn(table, stdout=Terminal())
        assert drew == [table]
        patch.setenv("NO_COLOR", "1")
        assert drawn(table, stdout=Terminal()) == plain
        patch.delenv("NO_COLOR")
        patch.setenv("TERM", "dumb")
        assert drawn(table, stdout=Terminal()) == plain
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rich", None)  # as if it were not installed
        assert drawn(table, stdout=Terminal()) == plain
    assert drawn(table) == plain
    assert drew == [table]


def test_rich_draws_the_same_cells(monkeypatch):
    pytest.importorskip("rich", reason="the rich extra is not installed")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = Table(("a", "n"), [("[red]b[/red]", 1), ("\x1b[0m", None)], "T [bold]")
    shown = drawn(table, Table((), [("k", "v")]), Table((), []), "end", stdout=Terminal())
    assert "T [bold]" in shown
    assert "[red]b[/red]" in shown
    assert "\\x1b[0m" in shown
    assert shown.endswith("end\n")
