"""``mmapds counters``: list, get, add and reset, as a shell sees them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from shell import Run, in_process, shell

from mmapds import Counters

EMMAP = b"EMMAP01\n" + struct.pack("<Q4q", 4, 0, 7, 0, -9)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "counters")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Some names, one of which was removed and counts on, and an index."""
    name = str(tmp_path / "request counts")
    with Counters(name, 8) as c:
        c.update({"hits": 3, "http.200": -5, "gone": 7, "3": 12, "größe": 2**63 - 1})
        gone = c.counter("gone")
        c.remove("gone")
        gone.add(40)
        c[3] = 33
    return name


@pytest.fixture
def erlang(tmp_path: Path) -> str:
    (tmp_path / "erlang").write_bytes(EMMAP)
    return str(tmp_path / "erlang")


# ---- list ----------------------------------------------------------------------------------------------------------

LIST = """\
name      index                value
--------  -----  -------------------
hits          8                    3
http.200      9                   -5
3            11                   12
größe        12  9223372036854775807
-             3                   33
-            10                   40
"""


def test_list_is_what_happens_without_an_action(path):
    assert shell("counters", path, "list") == (0, LIST, "")
    assert shell("counters", path) == (0, LIST, "")


def test_list_as_json(path, here):
    for words in ((path, "--json"), (path, "list", "--json"), ("--json", path, "list")):
        status, out, err = here(*words)
        assert (status, err) == (0, "")
        found = json.loads(out)
    assert found.pop("counters")[3:5] == [
        {"name": "größe", "index": 12, "value": 2**63 - 1},
        {"name": None, "index": 3, "value": 33},
    ]
    assert found == {
        "path": path,
        "layout": "mmapds",
        "dtype": "i64",
        "padded": False,
        "durability": "process",
        "capacity": 8,
        "names": 4,
    }


@pytest.mark.parametrize("words", [["--all"], ["list", "--all"], ["--all", "list"]])
def test_list_all(words, path, here):
    found = json.loads(here(path, *words, "--json").out)["counters"]
    assert [row["index"] for row in found] == [8, 9, 11, 12, 0, 1, 2, 3, 4, 5, 6, 7, 10]
    assert [row["value"] for row in found[4:]] == [0, 0, 0, 33, 0, 0, 0, 0, 40]


@pytest.mark.parametrize("padded", [False, True])
def test_list_floats_in_full(tmp_path, padded, here):
    path = str(tmp_path / "f")
    with Counters(path, dtype="f64", padded=padded) as c:
        c.update({"seconds": 0.1 + 0.2, "big": 1e300, "none": float("nan")})
        c[5] = -1234.5
    assert here(path).out.splitlines()[2:] == [
        "seconds     64  0.30000000000000004",
        "big         65               1e+300",
        "none        66                  nan",
        "-            5              -1234.5",
    ]
    found = json.loads(here(path, "--json").out)
    assert (found["dtype"], found["padded"]) == ("f64", padded)
    assert [row["value"] for row in found["counters"]] == [0.1 + 0.2, 1e300, None, -1234.5]


def test_list_with_indices_only(tmp_path, here):
    path = str(tmp_path / "many")
    with Counters(path, 20_000) as c:
        assert here(path) == (0, f"{path}: no names, and all 20000 cells are 0\n", "")
        for index in (0, 4095, 4096, 19_999):
            c[index] = index + 1
        found = json.loads(here(path, "--json").out)["counters"]
        assert [(row["name"], row["index"], row["value"]) for row in found] == [
            (None, index, index + 1) for index in (0, 4095, 4096, 19_999)
        ]
        assert len(json.loads(here(path, "--all", "--json").out)["counters"]) == 20_000


def test_list_emmap(erlang, here):
    assert [line.split() for line in here(erlang).out.splitlines()[2:]] == [["-", "1", "7"], ["-", "3", "-9"]]
    found = json.loads(here(erlang, "list", "--all", "--json").out)
    assert (found["layout"], found["capacity"], found["names"]) == ("emmap", 4, 0)
    assert [row["value"] for row in found["counters"]] == [0, 7, 0, -9]


def test_names_cannot_drive_the_terminal(tmp_path, here):
    path = str(tmp_path / "c")
    with Counters(path) as c:
        c["\x1b[31mred\n"] = 1
    assert here(path).out.splitlines()[2].startswith("\\x1b[31mred\\n")
    assert here(path, "get", "\x1b[2J") == (1, "", f"mmapds: {path} has no counter named '\\x1b[2J'\n")


# ---- get -----------------------------------------------------------------------------------------------------------


def test_get_prints_values_alone(path, here):
    assert shell("counters", path, "get", "hits") == (0, "3\n", "")
    assert here(path, "get", "größe", "http.200", "hits", "hits") == (0, f"{2**63 - 1}\n-5\n3\n3\n", "")
    assert json.loads(here(path, "get", "hits", "3", "--json").out) == [
        {"key": "hits", "value": 3},
        {"key": "3", "value": 12},
    ]


def test_a_number_is_a_name_unless_index_says_not(path, here):
    assert here(path, "get", "3").out == "12\n"
    assert here(path, "get", "--index", "3", "8").out == "33\n3\n"
    assert here(path, "get", "-i", "10").out == "40\n"
    assert json.loads(here(path, "get", "-i", "3", "--json").out) == [{"key": 3, "value": 33}]
    assert here(path, "get", "7") == (
        1,
        "",
        f"mmapds: {path} has no counter named '7'; --index 7 is the one at that index\n",
    )


def test_a_name_that_begins_with_a_dash(path, here):
    with Counters(path) as c:
        c["--all"] = 5
    assert here(path, "get", "--", "--all").out == "5\n"


def test_get_what_is_not_there(path, here):
    assert shell("counters", path, "get", "hits", "hist") == (1, "", f"mmapds: {path} has no counter named 'hist'\n")
    assert here(path, "get", "gone").status == 1
    for index in (13, -1, 2**64):
        status, out, err = here(path, "get", "-i", "--", index)
        assert (status, out) == (1, "")
        assert err == (
            f"mmapds: {path} has no counter {index}: its indices go from 0 to 12, of which those from 8 on have names\n"
        )
    assert here(path, "get", "-i", "hits") == (2, "", "mmapds: 'hits' is not an index\n")


def test_get_emmap_by_index_only(erlang, here):
    assert here(erlang, "get", "1", "3").out == "7\n-9\n"
    assert here(erlang, "get", "-i", "1").out == "7\n"
    assert here(erlang, "get", "a") == (2, "", "mmapds: 'a' is not an index, and the files of emmap have no names\n")
    assert here(erlang, "get", "4").status == 1


# ---- add and reset -------------------------------------------------------------------------------------------------


def test_add_prints_the_new_value(path, here):
    assert shell("counters", path, "add", "hits") == (0, "4\n", "")
    assert here(path, "add", "hits", "-10").out == "-6\n"
    assert here(path, "add", "-i", "3", "7").out == "40\n"
    assert json.loads(here(path, "add", "hits", "6", "--json").out) == {"key": "hits", "value": 0}
    with Counters(path) as c:
        assert (c["hits"], c[3]) == (0, 40)


def test_a_typo_makes_no_name(path, here):
    before = Path(path).read_bytes()
    assert here(path, "add", "hist") == (1, "", f"mmapds: {path} has no counter named 'hist': --create makes it\n")
    assert Path(path).read_bytes() == before
    assert here(path, "add", "hist", "5", "--create").out == "5\n"
    assert here(path, "add", "--create", "hist").out == "6\n"
    assert here(path, "add", "gone", "--create").out == "41\n"  # what was added to the removed one since


def test_add_refuses_what_does_not_fit(path, here):
    assert here(path, "add", "größe") == (
        1,
        "",
        f"mmapds: {2**63 - 1} + 1 does not fit into the counter; it was left as it is\n",
    )
    assert here(path, "add", "hits", 2**63) == (
        1,
        "",
        f"mmapds: {2**63} does not fit into a signed 64-bit counter\n",
    )
    assert here(path, "add", "hits", "1.5") == (
        2,
        "",
        f"mmapds: '1.5' is not an integer, which the counters of {path} need (dtype 'i64')\n",
    )
    assert here(path, "add", "new", "x", "--create").status == 2
    with Counters(path) as c:
        assert ("new" in c, c["größe"], c["hits"]) == (False, 2**63 - 1, 3)


@pytest.mark.parametrize("name", ["", "x" * 256, "\udcff"])
def test_add_refuses_names_that_no_counter_can_have(name, path, here):
    before = Path(path).read_bytes()
    status, out, err = here(path, "add", name, "--create")
    assert (status, out) == (2, "")
    assert err.startswith("mmapds: the name ")
    assert err.count("\n") == 1
    assert here(path, "add", name).status == here(path, "get", name).status == here(path, "reset", name).status == 1
    assert Path(path).read_bytes() == before


def test_add_to_floats(tmp_path, here):
    path = str(tmp_path / "f")
    with Counters(path, dtype="f64") as c:
        c["seconds"] = 0.1
    assert here(path, "add", "seconds", "0.2").out == "0.30000000000000004\n"
    assert here(path, "add", "seconds").out == "1.3\n"
    for n in ("nan", "inf", "1e999", "much"):
        assert here(path, "add", "seconds", n) == (
            2,
            "",
            f"mmapds: {n!r} is not a finite number, which the counters of {path} need (dtype 'f64')\n",
        )
    assert here(path, "reset", "seconds").out == "1.3\n"


def test_reset_prints_what_it_replaced(path, here):
    assert shell("counters", path, "reset", "hits") == (0, "3\n", "")
    assert here(path, "reset", "hits").out == "0\n"
    assert json.loads(here(path, "reset", "-i", "3", "--json").out) == {"key": 3, "value": 33}
    assert here(path, "reset", "hist") == (1, "", f"mmapds: {path} has no counter named 'hist'\n")
    with Counters(path) as c:
        assert (c["hits"], c[3], "hist" in c) == (0, 0, False)


def test_change_emmap(erlang, here):
    assert here(erlang, "add", "2", "5").out == "5\n"
    assert here(erlang, "add", "2", "--create").out == "6\n"
    assert here(erlang, "reset", "3").out == "-9\n"
    assert here(erlang, "add", "a", "--create").status == 2
    assert Path(erlang).read_bytes() == b"EMMAP01\n" + struct.pack("<Q4q", 4, 0, 7, 6, 0)
