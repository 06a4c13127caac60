"""The machinery of the benchmarks. Nothing here depends on how fast anything is."""

from __future__ import annotations

import copy
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mmapds import cli
from mmapds.bench import cases, crate, machine, measure, peers, plot, readers, report, rows, sync
from mmapds.bench.measure import Case, Cost
from mmapds.cli.output import document

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def results():
    """One quick run of everything."""
    said = []
    found = sync.run(quick=True, progress=said.append)
    assert said
    return found


# --- a whole run -------------------------------------------------------------------------------


def test_every_row_is_there_and_measured_or_says_why_not(results):
    assert [row["name"] for row in results["rows"]] == [row.name for row in rows.ROWS]
    for row, promise in zip(results["rows"], rows.ROWS, strict=True):
        if row["skipped"]:
            assert row["ratio"] is row["met"] is None
            continue
        assert row["measured_ns"] > 0
        assert row["reference_ns"] > 0
        assert row["noise"] >= 0
        met = row["ratio"] >= promise.limit if promise.at_least else row["ratio"] <= promise.limit
        assert row["met"] is met


def test_what_needs_no_other_program_is_measured(results):
    measured = {row["name"] for row in results["rows"] if not row["skipped"]}
    assert measured >= {
        "version",
        "read_release",
        "with_read",
        "with_read_64mib",
        "load",
        "pread",
        "pwrite",
        "fetch_add",
    }


def test_every_peer_stands_beside_a_figure_of_ours_or_says_why_not(results):
    assert len({peer["name"] for peer in results["peers"]}) == len(results["peers"])
    for peer in results["peers"]:
        assert peer["skipped"] or min(peer["ns"], peer["ours_ns"], peer["ratio"]) > 0


def test_a_run_says_what_it_ran_on(results):
    assert results["quick"] is True
    assert results["machine"]["cpu"]
    assert results["machine"]["usable_cores"] >= 1
    assert results["kernel"].startswith("Linux")
    assert any(results["file_systems"].values())
    assert "python" in results["versions"]
    assert results["others"]["seconds"] > 0
    assert results["unit_ns"] == results["figures"]["U"]["best_ns"]


def test_a_run_survives_json(results):
    assert json.loads(document(results)) == results


def test_a_run_leaves_nothing_behind(results):
    for directory in ("/dev/shm", machine.tempfile.gettempdir()):
        if os.path.isdir(directory):
            ours = [name for name in os.listdir(directory) if name.startswith("mmapds-bench-")]
            assert not [name for name in ours if os.stat(f"{directory}/{name}").st_uid == os.getuid()]


def test_the_command_writes_both_files(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sync, "run", lambda **options: results)
    run, chart = tmp_path / "run.json", tmp_path / "run.svg"
    assert cli.main(["bench", "sync", "--quick", "--json", str(run), "--svg", str(chart)]) == 0
    assert json.loads(run.read_text("utf-8")) == results
    assert ET.parse(chart).getroot().tag == f"{SVG}svg"
    assert "AtomicInt64.fetch_add" in capsys.readouterr().out


# --- tables and chart --------------------------------------------------------------------------


def test_tables_are_rectangular(results):
    promises, others, facts = sync.tables(results)
    assert len(promises.rows) == len(rows.ROWS)
    assert {len(row) for row in promises.rows} == {len(promises.columns)}
    assert {len(row) for row in others.rows} == {len(others.columns)}
    assert {len(row) for row in facts.rows} == {2}


def test_a_row_that_was_not_measured_gives_its_reason(results):
    changed = copy.deepcopy(results)
    changed["rows"][0] = rows.ROWS[0].skipped("no such thing here")
    changed["peers"][0] = rows.missing("x", "X", "ours", "nor this")
    text = report.markdown(changed)
    assert "not measured: no such thing here" in text
    assert "not measured: nor this" in text
    ET.fromstring(sync.svg(changed))


def test_the_chart_is_well_formed_and_has_every_value(results):
    root = ET.fromstring(sync.svg(results))
    assert root.tag == f"{SVG}svg"
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for row in results["rows"]:
        if not row["skipped"]:
            assert row["what"] in texts
            assert any(text.startswith(report.nanoseconds(row["measured_ns"])) for text in texts)
    width = float(root.attrib["viewBox"].split()[2])
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.attrib["width"]) > 0
        assert float(bar.attrib.get("x", "0")) + float(bar.attrib["width"]) <= width


def test_a_chart_escapes_what_the_machine_says(results):
    changed = copy.deepcopy(results)
    changed["machine"]["cpu"] = "<b>&"
    assert "<b>&" in "".join(ET.fromstring(plot.svg(changed)).itertext())


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50 ns"), (9.996, "10.0 ns"), (999.6, "1.00 µs"), (2.5e6, "2.50 ms"), (4e9, "4.00 s")]
)
def test_times_have_three_digits(value, text):
    assert report.nanoseconds(value) == text


def test_renew_replaces_what_is_between_the_marks(results):
    page = f"before\n{report.BEGIN}old\n{report.END}after\n"
    once = report.renew(page, results)
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert report.renew(once, results) == once
    with pytest.raises(ValueError, match="put the tables"):
        report.renew("nothing", results)


def test_the_documentation_holds_one_run():
    run = json.loads((DOCS / "images" / "bench-sync.json").read_text("utf-8"))
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    assert report.renew(page, run) == page
    assert (DOCS / "images" / "bench-sync.svg").read_text("utf-8") == plot.svg(run)
    assert not run["quick"]
    assert [row["name"] for row in run["rows"]] == [row.name for row in rows.ROWS]


# --- how a time is taken -----------------------------------------------------------------------


def scripted(name, seconds, *, looped=False, calls=None):
    """A case whose clock says what the script says: seconds per call, in turn."""
    script = iter(seconds)

    def clock(count):
        if calls is not None:
            calls.append(name)
        return count * next(script)

    return Case(name, clock, looped=looped)


def test_the_best_and_the_median_are_kept():
    warm_up = [9.0]
    case = scripted("a", [*warm_up, 5e-9, 3e-9, 4e-9])
    figures = measure.take([case], rounds=3, slice_seconds=0)
    assert figures == {"a": Cost(pytest.approx(3), pytest.approx(4))}


def test_cases_take_turns_and_odd_rounds_are_reversed():
    calls = []
    pair = [scripted(name, [1.0] * 9, calls=calls) for name in "ab"]
    measure.take(pair, rounds=2, slice_seconds=0)
    assert "".join(calls[2:]) == "abba"  # the first two are warm-ups


def test_the_first_call_does_not_decide_how_long_a_slice_is():
    counts = []

    def clock(count):
        counts.append(count)
        return 1.0 if len(counts) == 1 else count * 1e-3

    measure.take([Case("a", clock, looped=False)], rounds=1, slice_seconds=0.05)
    assert counts[-1] == pytest.approx(50, abs=20)


def test_the_loop_itself_is_subtracted():
    nothing = measure.statement("nothing", "pass", {}, repeat=1)
    something = measure.statement("something", "f()", {"f": lambda: sum(range(100))}, repeat=1)
    figures = measure.take([nothing, something], rounds=20, slice_seconds=0.0005)
    assert 0 < figures["nothing"].best < figures["something"].best


def test_a_statement_runs_as_often_as_it_is_counted():
    ran = []
    case = measure.statement("a", "ran.append(0)", {"ran": ran}, repeat=3)
    case.clock(7)
    assert len(ran) == 7 * case.each == 21


def test_pinning_ends():
    before = os.sched_getaffinity(0)
    with measure.pinned() as cpu:
        assert cpu is None or os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before


def test_pinning_may_be_forbidden(monkeypatch):
    def refuse(pid, cpus):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with measure.pinned() as cpu:
        assert cpu is None


def test_a_ratio_of_rates_is_upside_down_and_medians_are_used_where_they_should_be():
    at_most = rows.Row("x", "x", "y", "x", "y", 2).result(Cost(30, 90), Cost(10, 10))
    assert (at_most["ratio"], at_most["met"], at_most["target"]) == (3.0, False, "<= 2")
    at_least = rows.Row("x", "x", "y", "x", "y", 0.95, True, True).result(Cost(30, 100), Cost(10, 96))
    assert (at_least["ratio"], at_least["met"], at_least["target"]) == (0.96, True, ">= 0.95")
    assert at_least["statistic"] == "median"


# --- what may be missing -----------------------------------------------------------------------


def test_the_crate_is_looked_for(tmp_path, monkeypatch):
    program = tmp_path / "interop"
    program.write_text("")
    assert "not a program" in crate.find(str(program), build=False, progress=print)
    program.chmod(0o700)
    assert crate.find(str(program), build=False, progress=print) == program
    monkeypatch.setenv("CARGO_TARGET_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert crate.find(None, build=True, progress=print) == "cargo is not installed"
    monkeypatch.setattr(crate, "_SOURCE", tmp_path)
    assert "not a checkout" in crate.find(None, build=True, progress=print)


def test_the_crate_says_its_figures_and_ours_are_taken_between(tmp_path):
    program = tmp_path / "interop"
    figures = {name: 2.0 + i for i, name in enumerate(crate.FIGURES)}
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'crate_version': '1.2.3', **figures})}'\n")
    program.chmod(0o700)
    ours = scripted("a", [1e-9] * 99)
    found, version = crate.alternate(program, str(tmp_path), [ours], runs=2, rounds=3, slice_seconds=0)
    assert version == "1.2.3"
    assert found["crate.version_ns"] == Cost(2.0, 2.0)
    assert found["a"].best == pytest.approx(1)


def test_two_readers_need_two_processors(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert readers.both(str(tmp_path), rounds=1, seconds=0.01) == "needs two processors"


def test_a_reader_that_dies_is_reported(tmp_path, capfd):
    missing = str(tmp_path / "missing" / "x")
    with readers._Reader(missing, missing, 0) as reader, pytest.raises(RuntimeError, match="ended early"):
        reader.ready()
    assert "FileNotFoundError" in capfd.readouterr().err


def test_peers_that_are_not_installed_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with cases.ExitStack() as stack:
        found, reasons = peers.cases(stack, str(tmp_path))
        assert {case.name for case in found} == {"shm.read", "shm.write"}
    assert "lmdb cannot be imported" in reasons["lmdb"]
    assert re.search("redis", reasons["redis"])


def test_the_large_value_goes_where_there_is_room(tmp_path):
    assert not cases.has_room(None)
    assert cases.has_room(str(tmp_path)) in (True, False)


def test_file_systems_have_names():
    assert machine.file_system("/proc") == "proc"
    with machine.directories() as (memory, disk):
        assert memory is None or machine.file_system(memory) == "tmpfs"
        assert disk is None or machine.file_system(disk) != "tmpfs"
        there = [directory for directory in (memory, disk) if directory]
        assert all(map(os.path.isdir, there))
    assert not any(map(os.path.exists, there))
