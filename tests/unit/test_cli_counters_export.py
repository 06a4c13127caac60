"""``mmapds counters PATH export``: the formats, and what names become in Prometheus, read back by its own client."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shell import COMMAND, WATCHDOG, Run, in_process, shell

from mmapds import Counters
from mmapds.cli._prometheus import Row, exposition, metric_name

NASTY = 'quo"te\\back\nline\ttab\r \x00\x1b[31m\x85\u2028größe 🐍'


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys, "counters")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "request counts")
    with Counters(name, 8) as c:
        c.update({"hits": 3, "http.200": 5, "errors": 0, "http 200": -7, "200": 1, "http_200": 9})
        c[3] = 33
    return name


PAGE = """\
# HELP hits HELP
# TYPE hits untyped
hits 3
# HELP http_200 HELP
# TYPE http_200 untyped
http_200{name="http.200"} 5
http_200{name="http 200"} -7
http_200 9
# HELP errors HELP
# TYPE errors untyped
errors 0
# HELP _200 HELP
# TYPE _200 untyped
_200{name="200"} 1
# HELP mmapds_counter HELP
# TYPE mmapds_counter untyped
mmapds_counter{index="3"} 33
""".replace("HELP\n", "A counter of mmapds. If it has a label, that is its name in the file, or its index.\n")


def series(page: str) -> dict[tuple[str, str, str], float]:
    """{(metric, label, value of the label): value}, as Prometheus' client reads a page."""
    parser = pytest.importorskip("prometheus_client.parser")
    found: dict[tuple[str, str, str], float] = {}
    for family in parser.text_string_to_metric_families(page):
        for sample in family.samples:
            [(label, value)] = sample.labels.items() or [("", "")]
            assert (sample.name, label, value) not in found
            found[sample.name, label, value] = sample.value
    return found


# ---- Prometheus ----------------------------------------------------------------------------------------------------


def test_prometheus(path, here):
    assert shell("counters", path, "export") == (0, PAGE, "")
    assert here(path, "export", "--format", "prometheus").out == PAGE
    assert series(PAGE) == {
        ("hits", "", ""): 3,
        ("http_200", "name", "http.200"): 5,
        ("http_200", "name", "http 200"): -7,
        ("http_200", "", ""): 9,
        ("errors", "", ""): 0,
        ("_200", "name", "200"): 1,
        ("mmapds_counter", "index", "3"): 33,
    }


def test_prometheus_type_prefix_and_all(path, here):
    page = here(path, "export", "--type", "gauge", "--prefix", "app:").out
    assert page == re.sub("^((?:# (?:HELP|TYPE) )?)(?=[a-z_])", r"\1app:", PAGE, flags=re.MULTILINE).replace(
        "untyped", "gauge"
    )
    page = here(path, "export", "--type", "counter", "--all").out
    assert page.count("# TYPE") == page.count(" counter\n") == 5
    assert page.count("\nmmapds_counter{") == 8
    assert series(page)["mmapds_counter_total", "index", "7"] == 0  # the client adds _total


def test_prometheus_floats_and_large_integers(tmp_path, here):
    path = str(tmp_path / "f")
    values = {"a": 0.1 + 0.2, "b": math.inf, "c": -math.inf, "d": math.nan, "e": -0.0, "f": 1e300}
    with Counters(path, dtype="f64") as c:
        c.update(values)
    page = here(path, "export").out
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    assert lines == ["a 0.30000000000000004", "b +Inf", "c -Inf", "d NaN", "e -0.0", "f 1e+300"]
    assert repr(list(series(page).values())) == repr(list(values.values()))
    whole = [Row("a", 0, 2**63 - 1), Row("b", 1, -(2**63))]
    assert exposition(whole).splitlines()[2::3] == [f"a {2**63 - 1}", f"b {-(2**63)}"]
    assert list(map(float, series(exposition(whole)).values())) == [2.0**63, -(2.0**63)]


def test_prometheus_of_emmap_and_of_nothing(tmp_path, here):
    path = str(tmp_path / "e")
    with Counters(path, 3, layout="emmap") as c:
        assert here(path, "export") == (0, "", "")
        c[1] = 5
    assert here(path, "export").out.splitlines()[1:] == ["# TYPE mmapds_counter untyped", 'mmapds_counter{index="1"} 5']
    assert len(series(here(path, "export", "--all").out)) == 3


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("hits", "hits"),
        ("Hits_2", "Hits_2"),
        ("http.requests-total/s", "http_requests_total_s"),
        ("2xx", "_2xx"),
        ("a:b", "a_b"),
        ("größe", "gr__e"),
        ("٣", "_"),  # a digit, and not one of ours
        ("🐍", "_"),
        ("_", "_"),
        ("..", "__"),
    ],
)
def test_the_rule(name, metric):
    assert metric_name(name) == metric
    label = "" if name == metric else f'{{name="{name}"}}'
    assert exposition([Row(name, 0, 1)]).splitlines()[2] == f"{metric}{label} 1"


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
alike = st.text("ab_. :19\"\\\n'", min_size=1, max_size=3)  # many of these become one


@given(
    found=st.dictionaries(names | alike, st.integers(-(2**53), 2**53), max_size=20), prefix=st.sampled_from(["", "x_"])
)
@example(found={NASTY: 1, 'a"': 2, "a\\": 3, "a\n": 4, "a\\n": 5, 'a\\"': 6, "mmapds_counter": 7}, prefix="")
def test_no_two_counters_become_one(found, prefix):
    rows = [Row(name, index, value) for index, (name, value) in enumerate(found.items(), 3)] + [Row(None, 1, 50)]
    page = exposition(rows, prefix=prefix)
    read = series(page)
    assert read.pop((prefix + "mmapds_counter", "index", "1")) == 50
    back = {value if label else metric.removeprefix(prefix): number for (metric, label, value), number in read.items()}
    assert back == found
    heads = [line for line in page.split("\n") if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads)) == page.count("# HELP ")
    for metric, _, _ in read:
        assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", metric)


@given(names, st.lists(names))
def test_what_a_counter_is_called_hangs_on_its_own_name_alone(name, others):
    def line(rows: list[Row]) -> str:
        return next(line for line in exposition(rows).split("\n") if line.endswith(" 77"))

    rows = [Row(other, index, 1) for index, other in enumerate(dict.fromkeys(others), 1) if other != name]
    assert line([Row(name, 0, 77)]) == line([*rows, Row(name, 0, 77)])


# ---- the other formats ---------------------------------------------------------------------------------------------


def test_json(path, here):
    whole = here(path, "list", "--json").out
    for words in (["--json"], ["--format", "json"], ["--format", "json", "--json"]):
        assert here(path, "export", *words).out == whole
    assert here("--json", path, "export").out == whole
    assert json.loads(whole)["counters"][1] == {"name": "http.200", "index": 9, "value": 5}


@pytest.mark.parametrize("chosen", ["csv", "prometheus"])
def test_json_and_another_format_contradict_each_other(chosen, path, here):
    said = here(path, "export", "--json", "--format", chosen)
    assert said == (2, "", f"mmapds: --json and --format {chosen} contradict each other\n")


def test_csv(path, here):
    with Counters(path) as c:
        c['a "b", c\n'] = 2**63 - 1
    assert here(path, "export", "--format", "csv").out == (
        "name,index,value\nhits,8,3\nhttp.200,9,5\nerrors,10,0\nhttp 200,11,-7\n200,12,1\nhttp_200,13,9\n"
        f'"a ""b"", c\n",14,{2**63 - 1}\n,3,33\n'
    )


def test_csv_of_floats(tmp_path, here):
    path = str(tmp_path / "f")
    with Counters(path, dtype="f64") as c:
        c.update({"a": 0.1 + 0.2, "b": math.inf, "c": math.nan})
    assert here(path, "export", "--format", "csv").out.splitlines()[1:] == [
        "a,64,0.30000000000000004",
        "b,65,inf",
        "c,66,nan",
    ]


# ---- bytes, terminals, pipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["prometheus", "csv", "json"])
def test_utf_8_whatever_the_locale(chosen, tmp_path):
    path = str(tmp_path / "c")
    with Counters(path) as c:
        c[NASTY] = 5
    said = shell("counters", path, "export", "--format", chosen, env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (said.status, said.err) == (0, "")
    if chosen == "json":
        assert json.loads(said.out)["counters"][0]["name"] == NASTY
    elif chosen == "csv":
        assert list(csv.reader(io.StringIO(said.out, newline="")))[1] == [NASTY, "64", "5"]
    else:
        assert series(said.out) == {(metric_name(NASTY), "name", NASTY): 5}


def test_names_cannot_drive_a_terminal(tmp_path):
    path = str(tmp_path / "c")
    with Counters(path) as c:
        c["\x1b[31mred"] = 5
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, "counters", path, "export"], stdout=theirs, timeout=WATCHDOG, check=True)
    os.close(theirs)
    said = os.read(ours, 1 << 16)
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b" not in said
    assert b'__31mred{name="\\x1b[31mred"} 5' in said


def test_a_closed_pipe_is_quiet(tmp_path):
    path = str(tmp_path / "c")
    with Counters(path, 100_000) as c:
        c[0] = 1
    for words in (["export"], ["export", "--format", "csv"], ["export", "--json"], ["list"]):
        command = [*COMMAND, "counters", path, *words, "--all"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141
