"""Whole runs of the benchmarks, and what is made of them. Nothing here depends on how fast anything is."""

from __future__ import annotations

import copy
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mmapds import cli
from mmapds.bench import (
    counters,
    counters_peers,
    machine,
    plot,
    queue,
    queue_peers,
    report,
    rows,
    snapshot,
    snapshot_peers,
    sync,
    sync_peers,
)
from mmapds.cli.output import document

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
TABLES = {"sync": rows.SYNC, "counters": rows.COUNTERS, "queue": rows.QUEUE, "snapshot": rows.SNAPSHOT}
PEERS = {
    "sync": sync_peers.PEERS,
    "counters": counters_peers.PEERS,
    "queue": queue_peers.PEERS,
    "snapshot": snapshot_peers.PEERS,
}
BENCHMARKS = {"sync": sync, "counters": counters, "queue": queue, "snapshot": snapshot}
TAKES = {"sync": {"program"}, "snapshot": {"keys", "memory"}}

# What needs no other program, no disk and no second processor.
ALWAYS = {
    "sync": {"version", "read_release", "with_read", "with_read_64mib", "load", "pread", "pwrite", "fetch_add"},
    "counters": {"bound", "index", "name", "value", "snapshot"},
    "queue": {"deque", "simple", "claim", "msgpack", "many", "delayed", "open", "scan", "segments"},
    "snapshot": {"open", "open_small", "open_pickle", "memory", "get", "many", "layers", "build", "build_limit"}
    | {"build_memory", "commit", "commits", "workers"},
}


@pytest.fixture(scope="module", params=list(BENCHMARKS))
def results(request):
    """One quick run of everything."""
    said = []
    found = BENCHMARKS[request.param].run(quick=True, progress=said.append)
    assert said
    assert found["benchmark"] == request.param
    return found


# --- a whole run -------------------------------------------------------------------------------


def test_every_row_is_there_and_measured_or_says_why_not(results):
    table = TABLES[results["benchmark"]]
    assert [row["name"] for row in results["rows"]] == [row.name for row in table]
    for row, promise in zip(results["rows"], table, strict=True):
        if row["skipped"]:
            assert row["ratio"] is row["met"] is None
            continue
        assert row["measured_ns"] > 0 or (promise.counted and row["measured_ns"] == 0)  # no more memory, say
        assert row["reference_ns"] > 0
        assert row["noise"] >= 0
        met = row["ratio"] >= promise.limit if promise.at_least else row["ratio"] <= promise.limit
        assert row["met"] is met


def test_what_needs_no_other_program_is_measured(results):
    measured = {row["name"] for row in results["rows"] if not row["skipped"]}
    assert measured >= ALWAYS[results["benchmark"]]


def test_every_peer_stands_beside_a_figure_of_ours_or_says_why_not(results):
    assert [peer["name"] for peer in results["peers"]] == [peer.name for peer in PEERS[results["benchmark"]]]
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
    name = results["benchmark"]
    asked = []
    monkeypatch.setattr(BENCHMARKS[name], "run", lambda **options: asked.append(options) or results)
    run, chart = tmp_path / "run.json", tmp_path / "run.svg"
    assert cli.main(["bench", name, "--quick", "--json", str(run), "--svg", str(chart)]) == 0
    assert json.loads(run.read_text("utf-8")) == results
    assert ET.parse(chart).getroot().tag == f"{SVG}svg"
    assert TABLES[name][-1].what in capsys.readouterr().out
    assert asked[0]["quick"] is True
    assert asked[0].keys() - {"quick", "progress"} == TAKES.get(name, set())


# --- tables and chart --------------------------------------------------------------------------


def test_tables_are_rectangular(results):
    promises, others, facts = report.tables(results)
    assert len(promises.rows) == len(results["rows"])
    assert {len(row) for row in promises.rows} == {len(promises.columns)}
    assert {len(row) for row in others.rows} == {len(others.columns)}
    assert {len(row) for row in facts.rows} == {2}


def test_a_row_that_was_not_measured_gives_its_reason(results):
    changed = copy.deepcopy(results)
    changed["rows"][0] = TABLES[results["benchmark"]][0].skipped("no such thing here")
    changed["peers"][0] = PEERS[results["benchmark"]][0].skipped("nor this")
    text = report.markdown(changed)
    assert "not measured: no such thing here" in text
    assert "not measured: nor this" in text
    ET.fromstring(plot.svg(changed))


def test_what_is_counted_is_no_time():
    row = rows.Row("n", "files", "3", "files", "three", 1, counted=True)
    found = row.result(rows.Cost(4, 4), rows.Cost(3, 3))
    assert report._row(found) == ["files", "4", "3", "3", "1.33", "<= 1", "NO"]
    assert report._row(row.skipped("none")) == ["files", None, "3", None, None, "<= 1", "not measured: none"]
    assert plot._promises({"rows": [found]}) == []


def test_the_chart_is_well_formed_and_has_every_value(results):
    root = ET.fromstring(plot.svg(results))
    assert root.tag == f"{SVG}svg"
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for row in results["rows"]:
        if not row["skipped"] and not row.get("counted"):
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
    twice = report.renew(page + page, results, results)
    assert twice == once + once
    for wrong in ("nothing", page + page, page.replace(report.END, "")):
        with pytest.raises(ValueError, match="put the tables"):
            report.renew(wrong, results)


def test_the_program_renews_a_page_and_the_charts(results, tmp_path):
    page, run = tmp_path / "page.md", tmp_path / "bench.json"
    page.write_text(f"{report.BEGIN}{report.END}", "utf-8")
    run.write_text(document(results), "utf-8")
    report._main(str(page), str(run))
    assert page.read_text("utf-8") == report.renew(f"{report.BEGIN}{report.END}", results)
    assert (tmp_path / "bench.svg").read_text("utf-8") == plot.svg(results)


def test_the_documentation_holds_the_runs_whose_charts_it_shows():
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    names = re.findall(r"\(images/bench-(\w+)\.svg\)", page)
    runs = [json.loads((DOCS / "images" / f"bench-{name}.json").read_text("utf-8")) for name in names]
    assert report.renew(page, *runs) == page
    for name, run in zip(names, runs, strict=True):
        assert (DOCS / "images" / f"bench-{name}.svg").read_text("utf-8") == plot.svg(run)
        assert run["benchmark"] == name.partition("_")[0]  # "snapshot_10m": with ten million keys
        assert not run["quick"]
        assert [row["name"] for row in run["rows"]] == [row.name for row in TABLES[run["benchmark"]]]
