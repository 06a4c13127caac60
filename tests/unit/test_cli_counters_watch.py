"""``mmapds counters PATH watch``: rates, one look after the other, and its many ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell import COMMAND, WATCHDOG, Run, in_process, shell

from mmapds import Counters
from mmapds.cli.counters import Row, _rate
from mmapds.inspection import verify


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "counters")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "request counts")
    with Counters(name, 8) as c:
        c.update({"hits": 3, "errors": 4})
        c[3] = 33
    return name


Watch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def watch(path: str) -> Iterator[Watch]:
    """watch(option, ...) -> a process that watches, and has said its first line."""
    started = []

    def watch(*words: str, **options: object) -> subprocess.Popen[str]:
        command = [*COMMAND, "counters", path, "watch", "--interval", "0.05", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield watch
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def look(process: subprocess.Popen[str]) -> dict[str | int, tuple[float, float | None]]:
    """The next of a watcher with --json: {name, or index: (value, rate)}."""
    assert process.stdout is not None
    found = json.loads(process.stdout.readline())
    assert found["seconds"] > 0
    assert found["time"] > 1.6e9
    return {
        row["index"] if row["name"] is None else row["name"]: (row["value"], row["rate"]) for row in found["counters"]
    }


# ---- what it says --------------------------------------------------------------------------------------------------


def test_tables(path):
    said = shell("counters", path, "watch", "--count", "2", "--interval", "0.01")
    assert (said.status, said.err) == (0, "")
    table = "[0-9]{2}:[0-9]{2}:[0-9]{2}\n" + re.escape(
        "name    index  value  per second\n"
        "------  -----  -----  ----------\n"
        "hits        8      3           0\n"
        "errors      9      4           0\n"
        "-           3     33           0\n"
    )
    assert re.fullmatch(f"{table}\n{table}", said.out), said.out


def test_json_is_one_document_a_line(path, here):
    lines = here(path, "watch", "--count", "3", "--interval", "0.01", "--json", "--all").out.splitlines()
    assert len(lines) == 3
    for line in lines:
        found = json.loads(line)
        assert [row["index"] for row in found["counters"]] == [8, 9, 0, 1, 2, 3, 4, 5, 6, 7]
        assert all(row["rate"] == 0 for row in found["counters"])


def test_rates_names_and_removals_while_it_watches(path, watch):
    process = watch("--json")
    assert look(process) == {"hits": (3, 0), "errors": (4, 0), 3: (33, 0)}
    with Counters(path) as c:
        c.add("hits", 1000)
        c.reset("errors")
        c.add(5, 7)
        c.add("new", 2)
        c.remove("errors")
        seen = [look(process)]
        while "new" not in seen[-1]:
            seen.append(look(process))
        assert seen[-1]["new"] == (2, None)  # nobody knows what it began with
        seen.append(look(process))
        assert seen[-1] == {"hits": (1003, 0), "new": (2, 0), 3: (33, 0), 5: (7, 0)}
        assert any((rates["hits"][1] or 0) > 0 for rates in seen)
        assert any((rates.get(5, (0, 0))[1] or 0) > 0 for rates in seen)
        c.update({f"name {number}": number for number in range(300)})
        while (found := look(process)).get("name 299") != (299, 0):
            assert found["hits"] == (1003, 0)


def test_rate():
    def rate(now: Row, before: Row | None) -> float | None:
        return _rate(now, before, 2.0)

    assert rate(Row("a", 64, 10), Row("a", 64, 4)) == 3
    assert rate(Row("a", 64, 0), Row("a", 64, 4)) == -2
    assert rate(Row("a", 64, -(2**63)), Row("a", 64, 2**63 - 1)) == 0.5  # it has wrapped
    assert rate(Row("a", 64, 10), None) is None
    assert rate(Row("a", 64, 10), Row(None, 64, 4)) is None
    assert rate(Row(None, 3, 10), None) == 5  # a cell that was 0 is not listed
    assert rate(Row("a", 64, 1.5), Row("a", 64, 0.5)) == 0.5


def test_floats_that_are_no_numbers(tmp_path, here):
    path = str(tmp_path / "f")
    with Counters(path, dtype="f64") as c:
        c.update({"inf": float("inf"), "nan": float("nan"), "half": 0.5})
    found = json.loads(here(path, "watch", "--json", "--count", "1", "--interval", "0.001").out)["counters"]
    assert [(row["value"], row["rate"]) for row in found] == [(None, None), (None, None), (0.5, 0)]


@pytest.mark.parametrize(("env", "redrawn"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_is_redrawn_unless_the_environment_forbids_it(env, redrawn, path):
    ours, theirs = pty.openpty()
    command = [*COMMAND, "counters", path, "watch", "--count", "2", "--interval", "0.01"]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | env
    subprocess.run(command, stdout=theirs, timeout=WATCHDOG, check=True, env=environment)
    os.close(theirs)
    said = os.read(ours, 1 << 16)
    os.close(ours)
    assert said.count(b"\x1b[H\x1b[J") == (2 if redrawn else 0)
    assert b"\x1b" in said or not redrawn
    assert said.count(b"hits") == 2


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_ctrl_c_is_quiet(path, watch):
    for words in ([], ["--json"], ["--interval", "1000"]):
        process = watch(*words)
        if "1000" not in words:
            assert process.stdout is not None
            process.stdout.readline()
        else:
            wait_until_it_has_the_file_open(process, path)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WATCHDOG)
        assert (process.returncode, err) == (130, "")
        assert all(json.loads(line) for line in out.splitlines() if "--json" in words)  # no half of one


def wait_until_it_has_the_file_open(process: subprocess.Popen[str], path: str) -> None:
    while f"{path}\n" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None


def test_a_watcher_is_killed_and_nobody_notices(path, watch):
    with Counters(path) as c:
        process = watch()
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        c.add("hits", 5)
        c.add("new")
        assert verify(path) == []
    assert verify(path) == []
    assert shell("counters", path, "get", "hits").out == "8\n"


def test_a_closed_pipe_is_quiet(watch):
    for words in ([], ["--json"]):
        process = watch(*words)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(WATCHDOG) == 141


@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
@pytest.mark.parametrize("layout", ["mmapds", "emmap"])
def test_r19_the_file_goes_while_it_watches(how, layout, path, watch):
    if layout == "emmap":
        os.unlink(path)
        Counters(path, layout="emmap").close()
    process = watch("--json", "--all")
    look(process)
    if how == "removed":
        os.unlink(path)
    elif how == "replaced":
        Counters(path + "2", layout=layout).close()
        os.replace(path + "2", path)
    else:
        os.truncate(path, 0)
    out, err = process.communicate(timeout=WATCHDOG)
    assert (process.returncode, err.count("\n")) == (1, 1), err
    assert re.search("truncated|was cut" if how == "cut" else "was removed or replaced", err)
    for line in out.splitlines():
        found = json.loads(line)["counters"]
        assert layout == "emmap" or found[0]["value"] == 3, "what it said is what was there"
