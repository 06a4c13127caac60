"""The protocols as models, searched exhaustively by spin; see promela/README.md for what stands for what.

Here are the small runs: the protocols as they are, in which spin must find nothing, and the same with one step taken
out or put back to what it must not be, in which it must find just that. `python tests/model/promela/run.py --all` does
the large ones too, which `-m models` runs here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "promela" / "run.py"
_spec = importlib.util.spec_from_file_location("promela_run", RUNNER)
assert _spec is not None
assert _spec.loader is not None
promela = importlib.util.module_from_spec(_spec)
sys.modules["promela_run"] = promela  # dataclasses look there
_spec.loader.exec_module(promela)

REASON = promela.missing()
RUNS = promela.all_runs()


def test_each_model_has_runs_of_both_kinds() -> None:
    for path in RUNNER.parent.glob("*.pml"):
        kinds = {run.expect for run in RUNS if run.model == path.stem and run.size == "small"}
        assert kinds == {"ok", "error"}, f"{path.name} must have small runs that find nothing, and some that must fail"


@pytest.mark.skipif(bool(REASON), reason=REASON or "spin is there")
@pytest.mark.parametrize(
    "run", [pytest.param(run, id=str(run), marks=[pytest.mark.models] * (run.size == "large")) for run in RUNS]
)
def test_model(run: promela.Run) -> None:  # type: ignore[name-defined]
    found = promela.search(run)
    assert found.good, f"{found.result}: {found.says}\n{found.trail[-6000:]}"


@pytest.mark.skipif(bool(REASON), reason=REASON or "spin is there")
@pytest.mark.parametrize(
    ("result", "options"),
    [
        ("ERROR", {"macros": ("-DWAKE_ONE", "-DWAITERS=2", "-DLAST=2")}),
        ("NOT FOUND", {"expect": "error", "finds": "invalid end state", "macros": ("-DWAITERS=1", "-DLAST=1")}),
        ("WRONG ERROR", {"expect": "error", "finds": "assertion", "macros": ("-DWAKE_ONE", "-DWAITERS=2", "-DLAST=2")}),
        ("CUT SHORT", {"depth": 20, "macros": ("-DWAITERS=1", "-DLAST=1")}),
    ],
)
def test_a_run_that_comes_out_otherwise_fails(result: str, options: dict[str, object]) -> None:
    found = promela.search(promela.Run("waiters", "broken", **options))
    assert (found.result, found.good) == (result, False), found.says
