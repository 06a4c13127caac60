"""The command line: exit status, streams, JSON and tables.

Most commands are run in this process with made-up files and structures, so that what is tested here is the command line
alone; what is really said of a file is tested with `mmapds.inspection`, the demo with `mmapds.demo`.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import pytest

import mmapds
from mmapds import cli
from mmapds.cli.output import Output, Table
from mmapds.errors import CorruptionError, MappingLost


@dataclasses.dataclass
class Finding:
    severity: str
    where: str
    what: str


def command(run: Callable[[argparse.Namespace, Output], int]) -> cli.Register:
    """Make a command called ``try`` that does `run`."""

    def register(commands, common):
        commands.add_parser("try", parents=[common]).set_defaults(run=run)

    return register


def raising(error: BaseException) -> cli.Register:
    def run(args, out):
        raise error

    return command(run)


@pytest.fixture
def inspection(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stand in for `mmapds.inspection`."""
    return stand_in(monkeypatch, mmapds, "inspection")


def stand_in(monkeypatch, package, name) -> types.ModuleType:
    fake = types.ModuleType(f"{package.__name__}.{name}")
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(package, name, fake, raising=False)
    return fake


# --- exit status and errors ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CorruptionError("bad header\nin f: expected x"), 1, "bad header in f: expected x"),
        (MappingLost("f was truncated"), 1, "f was truncated"),
        (FileNotFoundError(2, "No such file or directory", "f"), 2, "f: No such file or directory"),
        (PermissionError(13, "Permission denied", "f"), 2, "f: Permission denied"),
        (IsADirectoryError(21, "Is a directory", "d"), 2, "d: Is a directory"),
        (OSError(5, "Input/output error"), 1, "Input/output error"),
        (OSError(), 1, "OSError"),
        (CorruptionError("schema \x1b[31m"), 1, "schema \\x1b[31m"),
    ],
)
def test_an_error_is_one_line_and_a_status(error, status, line, capsys):
    assert cli.main(["try"], [raising(error)]) == status
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == f"mmapds: {line}\n"


def test_a_bug_is_a_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"], [raising(ZeroDivisionError())])


def test_interrupted_is_quiet(capsys):
    assert cli.main(["try"], [raising(KeyboardInterrupt())]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["inspect"], ["verify"], ["verify", "a", "b"], ["bench"]])
def test_a_malformed_command_line_is_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: mmapds" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["inspect", "--help"], ["verify", "--help"], ["bench", "sync", "--help"]])
def test_help(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    assert "usage: mmapds" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("mmapds ")


def test_a_closed_pipe_is_quiet():
    """``head`` went away: no traceback, no "Exception ignored", and not the status of a finding."""
    script = (
        "import sys; from mmapds import cli\n"
        "def register(commands, common):\n"
        "    run = lambda args, out: [out.emit(0, 'x' * 70) for _ in range(100_000)] and 0\n"
        "    commands.add_parser('try', parents=[common]).set_defaults(run=run)\n"
        "sys.exit(cli.main(['try'], [register]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_python_m_mmapds():
    done = subprocess.run([sys.executable, "-m", "mmapds", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mmapds ")
    assert done.stderr == ""


# --- JSON or tables --------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--json", "try"], ["try", "--json"], ["--json", "try", "--json"]])
def test_json_before_or_after_the_command(argv, capsys):
    def run(args, out):
        out.progress("working")
        out.emit({"a": [1, 2]}, "for people")
        return 0

    assert cli.main(argv, [command(run)]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out) == {"a": [1, 2]}
    assert streams.err == "working\n"
    assert cli.main(["try"], [command(run)]) == 0
    assert capsys.readouterr().out == "for people\n"


def test_a_name_that_the_locale_cannot_write(tmp_path):
    script = (
        "import sys; from mmapds import cli\n"
        "def register(commands, common):\n"
        "    run = lambda args, out: out.emit(0, '\\u4e2d') or 0\n"
        "    commands.add_parser('try', parents=[common]).set_defaults(run=run)\n"
        "sys.exit(cli.main(['try'], [register]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\\u4e2d\n"


# --- inspect, verify, bench ------------------------------------------------------------------


def test_inspect(inspection, capsys):
    asked = []
    inspection.describe = lambda path: asked.append(path) or {"kind": "sync", "header": {"size": 4096}}
    assert cli.main(["inspect", "some/file"]) == 0
    assert capsys.readouterr().out == "kind         sync\nheader.size  4096\n"
    assert cli.main(["inspect", "some/file", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kind": "sync", "header": {"size": 4096}}
    assert asked == ["some/file"] * 2


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([], 0),
        ([Finding("note", "slot 3", "its process is gone")], 0),
        ([Finding("warning", "header", "another boot")], 0),
        ([Finding("error", "data_0", "checksum differs")], 1),
        ([Finding("note", "slot 3", "x"), Finding("error", "y", "z")], 1),
        ([Finding("a severity of tomorrow", "x", "y")], 1),
    ],
)
def test_verify(findings, status, inspection, capsys):
    inspection.verify = lambda path: findings
    assert cli.main(["verify", "f"]) == status
    text = capsys.readouterr().out
    assert text.endswith(f"f: {'corrupt' if status else 'sound'}\n")
    for finding in findings:
        assert finding.what in text
    assert cli.main(["verify", "--json", "f"]) == status
    assert json.loads(capsys.readouterr().out) == {
        "path": "f",
        "sound": not status,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def test_inspect_and_verify_real_files(tmp_path, capsys):
    prefix = str(tmp_path / "set")
    with mmapds.Synchronizer(prefix, schema="\x1b[31m") as s:
        s.write([1, 2, 3])
    assert cli.main(["inspect", prefix]) == 0
    text = capsys.readouterr().out
    assert "control file of a Synchronizer" in text
    assert "\\x1b[31m" in text
    for path in (prefix, prefix + "_sync", prefix + "_data_1"):
        assert cli.main(["inspect", path, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["durability"] == "process"
        assert cli.main(["verify", path]) == 0
        assert capsys.readouterr().out == f"{path}: sound\n"
    with open(prefix + "_data_1", "r+b") as file:
        file.seek(4096)
        file.write(b"?")
    assert cli.main(["verify", prefix]) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].startswith("error     set_data_1  version 1: checksum 0x")
    assert shown.endswith(f"{prefix}: corrupt\n")
    assert cli.main(["verify", prefix, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], [f["where"] for f in found["findings"]]) == (False, ["set_data_1"])


def test_inspect_and_verify_what_is_not_there_or_not_ours(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("hello " * 1000)
    for name in ("inspect", "verify"):
        assert cli.main([name, str(tmp_path / "nothing")]) == 2
        assert cli.main([name, str(tmp_path)]) == 2
        assert cli.main([name, str(text)]) == 1
        streams = capsys.readouterr()
        assert streams.out == ""
        assert "not a file of mmapds" in streams.err.splitlines()[2]


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Stand in for `mmapds.bench.sync`, which remembers what it was asked."""
    stand_in(monkeypatch, mmapds, "bench")
    fake = stand_in(monkeypatch, mmapds.bench, "sync")
    fake.quick = []

    def run(*, quick, progress, program):
        fake.quick.append(quick)
        progress("measuring")
        return {"ratio": 1.5}

    fake.run = run
    fake.tables = lambda results: [Table(("ratio",), [(results["ratio"],)])]
    fake.svg = lambda results: "<svg/>"
    return fake


def test_bench_tables_and_files(sync, tmp_path, capsys):
    run, plot = tmp_path / "run.json", tmp_path / "run.svg"
    assert cli.main(["bench", "sync", "--quick", "--json", str(run), "--svg", str(plot)]) == 0
    assert capsys.readouterr() == ("ratio\n-----\n  1.5\n", "measuring\n")
    assert json.loads(run.read_text()) == {"ratio": 1.5}
    assert plot.read_text() == "<svg/>"
    assert sync.quick == [True]


@pytest.mark.parametrize("argv", [["--json", "bench", "sync"], ["bench", "sync", "--json"]])
def test_bench_json_to_standard_output(argv, sync, capsys):
    assert cli.main(argv) == 0
    assert json.loads(capsys.readouterr().out) == {"ratio": 1.5}
    assert sync.quick == [False]


def test_bench_opens_its_files_before_it_measures(sync, tmp_path, capsys):
    missing = tmp_path / "missing" / "run.json"
    assert cli.main(["bench", "sync", "--json", str(missing)]) == 2
    assert capsys.readouterr() == ("", f"mmapds: {missing}: No such file or directory\n")
    assert sync.quick == []
