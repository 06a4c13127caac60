"""The examples about regions, counters, queues and maps run by themselves, and leave nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env={**os.environ, "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(folder) == []
    return done.stdout


def test_shared_private(tmp_path: Path) -> None:
    lines = run("shared_private.py", tmp_path).splitlines()
    assert lines == [
        'mode="shared"',
        r"  shell 1 writes  b'abcdefg\n'",
        r"  shell 1 reads   b'abcdefg\n'",
        r"  shell 2 reads   b'abcdefg\n'",
        r"  the file holds  b'abcdefg\n'",
        'mode="private"',
        r"  shell 1 writes  b'1234567\n'",
        r"  shell 1 reads   b'1234567\n'",
        rf"  shell 2 reads   {bytes(8)}",
        rf"  the file holds  {bytes(8)}",
        "left behind: []",
    ]


@pytest.mark.parametrize("attempt", range(3))
def test_own_container(tmp_path: Path, attempt: int) -> None:
    lines = run("own_container.py", tmp_path).splitlines()
    assert lines[0].endswith("the lock is held: True")
    assert lines[1] == "samples put: 6004, taken: 6004, repairs: 1"
    assert lines[2] == "sum of what was taken: 9013503.0, of what was put: 9013503.0"


@pytest.mark.parametrize("attempt", range(3))
def test_request_counter(tmp_path: Path, attempt: int) -> None:
    head, *counters, summary, verdict = run("request_counter.py", tmp_path).splitlines()
    assert head.split("  ")[-1].strip() == "in vain"
    table = {line[:12].strip(): tuple(map(int, line[12:].split())) for line in counters}
    assert list(table) == ["requests", "status 200", "status 404", "bytes"]
    for name, (counted, answered, in_vain) in table.items():
        assert answered <= counted <= answered + in_vain, (name, table)
    assert table["requests"][1] + table["requests"][2] == 8000
    killed, twice = map(int, re.findall(r"\d+", summary))
    assert table["requests"][2] <= killed
    assert killed > 0
    assert twice == 0
    assert verdict == "nothing was lost, and nothing counted twice"


COUNT = "number, *_ = [counters[name].fetch_add(n) for name, n in steps(status, body).items()]"
SEND = "connection.sendall(HEAD % (status, number, len(body)) + body)"
SLOWLY = "__import__('time').sleep(0.0005)"
ADD = "counters[name].fetch_add(n)"
WRONG = {
    "answered, then counted": {
        COUNT: "number = counters['requests'].fetch_add()",
        SEND: f"{SEND}; {SLOWLY}; counters['bytes'].fetch_add(len(body))",
    },
    "counted twice": {ADD: f"{ADD} + 0 * {ADD}"},
    "read, then written": {ADD: f"(v := counters[name].load(), {SLOWLY}, counters[name].store(v + n))[0]"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_request_counter_finds_a_server_that_counts_wrongly(tmp_path: Path, changes: dict[str, str]) -> None:
    done = run_changed("request_counter.py", {**changes, "REQUESTS = 4, 2, 4000": "REQUESTS = 4, 2, 1000"}, tmp_path)
    assert done.returncode == 1, done
    assert done.stdout.splitlines()[-1:] == ["THE COUNTERS ARE WRONG"], done


def run_changed(name: str, changes: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    text = (EXAMPLES / name).read_text("utf-8")
    for right, wrong in changes.items():
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    (folder / "wrong.py").write_text(text, "utf-8")
    return subprocess.run(
        [sys.executable, folder / "wrong.py"], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("attempt", range(3))
def test_job_queue(tmp_path: Path, attempt: int) -> None:
    *lines, verdict = run("job_queue.py", tmp_path).splitlines()
    (jobs, killed), (in_journal, twice, unexplained), (in_bank, wrong) = (
        map(int, re.findall(r"\d+", s)) for s in lines
    )
    assert jobs == in_journal == in_bank == 6000
    assert killed > 0
    assert twice <= killed
    assert unexplained == wrong == 0
    assert verdict == "every job was done, and the money moved once"


MOVE = "                move(bank, claim)\n"
WRITE = "                journal.write("
FEWER = {"JOBS, ACCOUNTS = 4, 6000, 20": "JOBS, ACCOUNTS = 4, 1500, 20", "PAUSE = 0.01 ": "PAUSE = 0.003 "}
WRONG_JOBS = {
    "acknowledged before the work": {WRITE: f"                claim.ack(); {SLOWLY}; journal.write("},
    "moved again": {
        '"INSERT INTO done': '"INSERT OR IGNORE INTO done',
        MOVE: f"{MOVE}                {SLOWLY}\n",
    },
    "moved apart from the id": {
        '    bank.execute("UPDATE accounts SET balance = balance - ?': f'    bank.execute("COMMIT"); {SLOWLY}\n'
        '    bank.execute("UPDATE accounts SET balance = balance - ?',
        '    bank.execute("COMMIT")\n\n': "\n",
    },
    "written again without a kill": {
        MOVE: f"{MOVE}                journal.write(b'%d %s\\n' % (worker, claim.id.encode()))\n"
    },
}


@pytest.mark.parametrize("changes", WRONG_JOBS.values(), ids=WRONG_JOBS)
def test_job_queue_finds_workers_that_do_it_wrongly(tmp_path: Path, changes: dict[str, str]) -> None:
    done = run_changed("job_queue.py", {**changes, **FEWER}, tmp_path)
    assert done.returncode == 1, done
    assert done.stdout.splitlines()[-1:] == ["THE BOOKS ARE WRONG"], done


@pytest.mark.parametrize("attempt", range(3))
def test_feature_map(tmp_path: Path, attempt: int) -> None:
    who, versions, clicks, liked, verdict = run("feature_map.py", tmp_path).splitlines()
    producers, dead_producers, readers, dead_readers, failed = map(int, re.findall(r"\d+", who))
    assert (producers, dead_producers, failed) == (2, 1, 0), who
    assert 0 < dead_readers <= readers - 3, who
    published, seen, looks, wrong, fallen = map(int, re.findall(r"\d+", versions))
    assert published > 1000, versions
    assert 10 < seen <= looks, versions
    assert wrong == fallen == 0, versions
    position, missing, blocks = map(int, re.findall(r"\d+", clicks))
    assert (position, missing) == (20_000, 0), clicks
    assert blocks > 0
    counts = [int(count) for count in re.findall(r"\((\d+) clicks\)", liked)]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True), liked
    assert verdict == "every version was whole, and no click was lost"


POSITION = '                txn["position"] = position\n'
FEWER_CLICKS = {
    "CLICKS, USERS, ITEMS, READERS = 20_000": "CLICKS, USERS, ITEMS, READERS = 6_000",
    "PAUSE = 0.03": "PAUSE = 0.01",
}
WRONG_MAPS = {
    "position in a transaction of its own": {
        POSITION: '            with m.transaction() as txn:\n                txn["position"] = position\n'
    },
    "from the beginning after a kill": {'        position = m.get("position", 0)\n': "        position = 0\n"},
    "looked at without a snapshot": {"            with m.snapshot() as view:\n": "            if view := m:\n"},
    "an index with old entries": {"    txn.pop(rank(item, clicks), None)\n": ""},
    "a producer that fails": {POSITION: f"{POSITION}                assert position < 3_000\n"},
}


@pytest.mark.parametrize("changes", WRONG_MAPS.values(), ids=WRONG_MAPS)
def test_feature_map_finds_who_does_it_wrongly(tmp_path: Path, changes: dict[str, str]) -> None:
    done = run_changed("feature_map.py", {**changes, **FEWER_CLICKS}, tmp_path)
    assert done.returncode == 1, done
    assert done.stdout.splitlines()[-1:] == ["THE MAP IS WRONG"], done
