"""``mmapds queue``: watching, what it may touch, what it refuses, its many ends, and beside others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import queuefiles as raw
from shell import COMMAND, WATCHDOG, Run, in_process, shell

from mmapds import Counters, Queue, Synchronizer
from mmapds.inspection import verify

LOOKS = (["stat"], ["peek"], ["claims"], ["dead"], ["watch", "--count", "1", "--interval", "0.01"])
CHANGES = (["put", "1"], ["get"], ["requeue", "--all"], ["purge"], ["purge", "--dead"])


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "queue")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "jobs")
    with Queue(name) as q:
        q.put_many(range(5))
        q.claim().bury("no use")
    return name


def everything(path: str) -> dict[str, tuple[bytes, int]]:
    found = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in found}


# ---- what it may touch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*LOOKS, *CHANGES])
def test_nothing_makes_a_queue(words, tmp_path, here):
    missing = tmp_path / "missing"
    status, out, err = here(missing, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert here(tmp_path, *words) == (2, "", f"mmapds: {tmp_path}: a directory, and not that of a queue\n")
    (tmp_path / "file").write_text("text")
    assert here(tmp_path / "file", *words) == (2, "", f"mmapds: {tmp_path / 'file'}: Not a directory\n")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("words", LOOKS)
def test_looking_changes_nothing(words, path, here):
    raw.other_boot(path)  # whoever opens it for writing recovers it
    before = everything(path)
    assert here(path, *words).status == 0
    assert everything(path) == before


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, and nobody may write to."""
    with tempfile.TemporaryDirectory(prefix="mmapds-public-") as name:
        yield Path(name)
        for folder, _, _ in os.walk(name):
            os.chmod(folder, 0o755)


AS_NOBODY = """
import os, sys
import mmapds.inspection, mmapds.cli.queue
from mmapds import Queue, cli
cli.build_parser()  # what it needs is read before this process may not read it any more
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for words in eval(sys.argv[2]):
    print("status", cli.main(["queue", sys.argv[1], *words]), flush=True)
"""


def test_r13_without_write_permission(public):
    path = public / "jobs"
    with Queue(path) as q:
        q.put_many(range(5))
        q.claim().bury("no use")
    before = everything(str(path))
    for folder, _, names in os.walk(public):
        os.chmod(folder, 0o555)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o444)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(path), repr([*LOOKS, *CHANGES])],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=True,
    )
    statuses = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("status")]
    assert statuses == ["0"] * len(LOOKS) + ["2"] * len(CHANGES), done
    assert done.stderr.splitlines() == [f"mmapds: {path}/meta: Permission denied"] * len(CHANGES)
    assert everything(str(path)) == before


# ---- other files, other words --------------------------------------------------------------------------------------


def test_other_files_are_refused_in_one_line(tmp_path, here):
    with Synchronizer(tmp_path / "set") as s:
        s.write(1)
    for name, what in (("counts", "of kind 'counters'"), ("text", "not a file of mmapds"), ("fifo", "is a FIFO")):
        os.mkdir(tmp_path / name)
        meta = tmp_path / name / "meta"
        if name == "counts":
            Counters(meta).close()
        elif name == "text":
            meta.write_text("hello " * 1000)
        else:
            os.mkfifo(meta)
        for words in (*LOOKS, *CHANGES):
            status, out, err = here(tmp_path / name, *words)
            assert (status, out, err.count("\n")) == (1, "", 1), words
            assert what in err


def test_damage_is_said_in_one_line(path, here):
    raw.poke_word(raw.meta(path), raw.WORDS["capacity"], 1 << 40)
    for words in (*LOOKS, *CHANGES):
        status, out, err = here(path, *words)
        assert (status, out, err.count("\n")) == (1, "", 1), words


def test_r15_damaged_items_are_passed_over_and_told(tmp_path, here):
    path = str(tmp_path / "jobs")
    with Queue(path, codec="raw") as q:
        q.put_many([b"a" * 90, b"b" * 90, b"c" * 90])
    second = raw.PAGE + 168  # 72 and 96
    raw.poke(raw.segment(path, 1), second, b"\xff" * 8)
    assert [json.loads(line)["$bytes"][:1] for line in here(path, "peek", "--all").out.splitlines()] == ["Y", "Y"]
    status, out, err = here(path, "get", "--all")
    assert (status, out.count("\n"), err.count("\n")) == (1, 2, 1)
    assert "set aside" in err
    assert here(path, "get", "--all") == (0, "", "")
    assert os.listdir(os.path.join(path, "quarantine"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["f", "bogus"],
        ["f", "get", "-n", "0"],
        ["f", "get", "--timeout", "-1"],
        ["f", "get", "--timeout", "nan"],
        ["f", "get", "extra"],
        ["f", "peek", "-n", "x"],
        ["f", "put", "--delay", "-1"],
        ["f", "put", "--durability", "none"],
        ["f", "requeue"],
        ["f", "requeue", "1-0", "--all"],
        ["f", "watch", "--interval", "0"],
        ["f", "watch", "--count", "0"],
    ],
)
def test_a_malformed_command_line(words, here):
    status, out, err = here(*words)
    assert (status, out) == (2, "")
    assert "usage: mmapds" in err


def test_items_or_a_file(path, here):
    assert here(path, "put", "--file", "x", "1") == (2, "", "mmapds: give items, or --file, and not both\n")
    assert here(path, "put", "--file", path + "x") == (2, "", f"mmapds: {path}x: No such file or directory\n")


@pytest.mark.parametrize("action", ["", "stat", "put", "get", "peek", "claims", "dead", "requeue", "purge", "watch"])
def test_help(action, here):
    status, out, _ = here("f", *action.split(), "--help")
    assert status == 0
    assert out.startswith("usage: mmapds queue")


# ---- watch ---------------------------------------------------------------------------------------------------------

Watch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin() -> Iterator[Watch]:
    """begin(word, ...) -> ``mmapds queue ...`` as a process."""
    started = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [*COMMAND, "queue", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield begin
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def test_watch_tables(path, here):
    said = here(path, "watch", "--count", "2", "--interval", "0.01")
    assert (said.status, said.err) == (0, "")
    assert len(re.findall("^[0-9]{2}:[0-9]{2}:[0-9]{2}$", said.out, re.MULTILINE)) == 2
    rows = [line.split() for line in said.out.splitlines()]
    assert rows.count(["items", "4", "-"]) == 2, said.out
    assert rows.count(["put", "5", "0"]) == 2, said.out


def test_watch_rates(path, begin):
    process = begin(path, "watch", "--json", "--interval", "0.05")
    found = json.loads(process.stdout.readline())
    assert found["stats"]["items"] == 4
    assert found["rates"] == {"put": 0, "done": 0}
    with Queue(path) as q:
        q.put_many(range(100))
        q.get_many(50)
        seen = [found]
        while seen[-1]["stats"]["items"] != 54:
            seen.append(json.loads(process.stdout.readline()))
        assert max(found["rates"]["put"] for found in seen) > 0
        assert max(found["rates"]["done"] for found in seen) > 0
        assert sum(found["rates"]["put"] * found["seconds"] for found in seen) == pytest.approx(100)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WATCHDOG)
    assert (process.returncode, err) == (130, "")


def test_r19_the_queue_goes_while_it_is_watched(path, begin):
    process = begin(path, "watch", "--json", "--interval", "0.02")
    process.stdout.readline()
    Queue.erase(path)
    _, err = process.communicate(timeout=WATCHDOG)
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert "was removed or replaced" in err


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_ctrl_c_while_it_waits(path, begin):
    shell("queue", path, "purge")
    process = begin(path, "get", "--timeout", "inf")
    wait_for_its_handle(path, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WATCHDOG)
    assert (process.returncode, out, err) == (130, "", "")
    assert verify(path) == []


def wait_for_its_handle(path: str, process: subprocess.Popen[str]) -> None:
    with Queue(path) as q:
        while process.pid not in [holder["pid"] for holder in q.holders()]:
            assert process.poll() is None


def test_a_pipe_that_breaks_loses_nothing(path, begin):
    """Whoever got the lines has them; the others are in the queue again, in their order."""
    process = begin(path, "get", "--all", "--timeout", "inf")
    assert [process.stdout.readline() for _ in range(4)] == ["1\n", "2\n", "3\n", "4\n"]
    process.stdout.close()
    with Queue(path) as q:
        q.put("kept")
        assert process.stderr.read() == ""
        assert process.wait(WATCHDOG) == 141
        assert q.get(timeout=WATCHDOG) == "kept"
    assert verify(path) == []


def test_r3_a_get_that_is_killed_before_it_has_written(path, begin):
    """It cannot write: nobody reads, and the pipe is full."""
    shell("queue", path, "purge")
    with Queue(path) as q:
        q.put_many(["x" * 10_000] * 50)
        process = begin(path, "get", "--all", "-n", "50")
        while q.stats()["claimed"] != 50:
            assert process.poll() is None
        process.kill()
        process.wait()
        assert [q.get(timeout=WATCHDOG) for _ in range(50)] == ["x" * 10_000] * 50


def test_lines_are_put_as_they_come(path, begin):
    process = begin(path, "put")
    with Queue(path) as q:
        q.purge()
        for number in range(3):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            assert q.get(timeout=WATCHDOG) == number
        process.stdin.close()
        assert process.stdout.read() == "3\n"
        assert process.wait(WATCHDOG) == 0


def test_two_that_get_share_the_items(tmp_path, begin):
    path = str(tmp_path / "shared")
    with Queue(path) as q:
        q.put_many(range(2000))
    both = [begin(path, "get", "--all") for _ in range(2)]
    said = [process.communicate(timeout=WATCHDOG) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(int(line) for out, _ in said for line in out.split()) == list(range(2000))
    assert [err for _, err in said] == ["", ""]
    assert verify(path) == []
