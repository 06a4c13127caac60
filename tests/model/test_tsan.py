"""The native transitions under ThreadSanitizer: ``tsan/harness.c`` includes the package's headers, and says what is
seen by it and what by the models.

A sanitizer that finds nothing may be one that sees nothing. So the same harness is built with one memory order, or one
look, taken away, and then it must report a race, in the scenario that has to do with it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "tsan" / "harness.c"
HEADERS = Path(__file__).parents[2] / "mmapds" / "_native"
# Without -fno-builtin gcc makes moves of a memcpy whose size it knows, and the sanitizer does not see them.
FLAGS = ["-std=gnu11", "-g", "-O1", "-fsanitize=thread", "-fno-builtin", "-Wall", "-Wno-tsan", "-Wno-unused-function"]
RACE = 66  # the sanitizer's exit status
SCENARIOS = {"pin": 300, "copy": 1000, "lock": 500, "fifo": 500, "queue": 300, "delta": 1000}
MORE = {"copy": 20, "lock": 10}  # of the cheap ones, in a long run
BROKEN = {"BROKEN_PIN": "pin", "BROKEN_LOCK": "lock", "BROKEN_TAIL": "fifo", "BROKEN_HEAD": "delta"}


def build(to: Path, *macros: str) -> Path:
    """The harness, compiled."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    probe = subprocess.run(
        [compiler, "-fsanitize=thread", "-x", "c", "-o", str(to / "probe"), "-"],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"gcc has no -fsanitize=thread here: {probe.stderr.decode(errors='replace').strip()[-200:]}")
    if subprocess.run([to / "probe"], capture_output=True, check=False).returncode:
        pytest.skip("ThreadSanitizer does not run here (addresses too random? vm.mmap_rnd_bits above 28)")
    binary = to / "-".join(("harness", *macros))
    done = subprocess.run(
        [compiler, *FLAGS, *(f"-D{macro}" for macro in macros), f"-I{HEADERS}", "-o", binary, HARNESS, "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return binary


def run(binary: Path, scenario: str, rounds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary, scenario, str(rounds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"TSAN_OPTIONS": f"halt_on_error=1 exitcode={RACE}"},
    )


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tsan"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_race(harness: Path, scenario: str) -> None:
    found = run(harness, scenario, SCENARIOS[scenario])
    assert found.returncode == 0, found.stderr[-6000:]
    assert found.stdout.startswith(f"{scenario}: "), found.stdout


@pytest.mark.parametrize("macro", BROKEN)
def test_a_missing_order_is_reported(macro: str, tmp_path: Path) -> None:
    """A round may go by without the interleaving, so there are several."""
    binary = build(tmp_path, macro)
    for _ in range(10):
        found = run(binary, BROKEN[macro], 1000)
        if found.returncode == RACE:
            break
    assert found.returncode == RACE, (found.returncode, found.stdout, found.stderr[-3000:])
    assert "data race" in found.stderr, found.stderr[-3000:]


def main() -> int:
    """``python tests/model/test_tsan.py [ROUNDS]``: all scenarios, longer."""
    import tempfile
    import time

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10000  # the queue has room for 13,000
    bad = 0
    with tempfile.TemporaryDirectory(prefix="tsan-") as folder:
        binary = build(Path(folder))
        for scenario in SCENARIOS:
            started = time.monotonic()
            found = run(binary, scenario, rounds * MORE.get(scenario, 1))
            bad += found.returncode != 0
            print(f"{scenario:6} {found.stdout.strip():40} {time.monotonic() - started:7.1f} s  ", end="")
            print("no race" if found.returncode == 0 else f"WRONG, status {found.returncode}\n{found.stderr[-4000:]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
