"""Region and its locks when a signal, KeyboardInterrupt or MemoryError comes: nothing is left behind."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapds import Region

STORM = """
path = sys.argv[1]
region = Region.open(path, 1 << 16)
lock, word = region.lock(0), region.atomic(8)

class Interrupted(BaseException):
    pass

def interrupt(*_):
    raise Interrupted

"""


def test_r28_a_storm_of_signals(run: Callable[..., str], start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "file"
    other = start(
        STORM
        + """
say("working")
for _ in range(30000):
    with lock:
        region[16] = (region[16] + 1) % 256
        region[17] = (region[17] + 1) % 256
region.close()
""",
        path,
    )
    other.expect("working")
    said = run(
        STORM
        + """
armed = False
def interrupt_once(*_):
    global armed
    if armed:
        armed = False
        raise Interrupted

signal.signal(signal.SIGALRM, interrupt_once)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
interrupted = entered = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        armed = True
        while True:
            with lock:
                assert region[16] == region[17], (region[16], region[17])
                entered += 1
    except Interrupted:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
say(interrupted > 100, entered > 0, lock_ends(lock))
region.close()
""",
        path,
    )
    assert said == "True True False"
    other.finish()


def test_r28_signals_while_allocating(run: Callable[..., str], mount: Callable[..., Path]) -> None:
    folder = mount("tmpfs", "size=300m")
    said = run(
        STORM
        + """
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
region.resize(1 << 28)
say(os.stat(path).st_blocks * 512 >= 1 << 28, len(ticks) > 3)
region.resize(1 << 16)
before = os.stat(path).st_blocks
signal.signal(signal.SIGALRM, interrupt)
for _ in range(20):
    try:
        region.resize(1 << 28)
        region.resize(1 << 16)
    except Interrupted:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
say(len(region) in (1 << 16, 1 << 28), os.stat(path).st_size >= len(region))
region.resize(1 << 16)
say(os.stat(path).st_blocks == before)
region[0] = 1
region.close()
""".replace("for _ in range(20):", "for _ in range(20):\n    signal.setitimer(signal.ITIMER_REAL, 0.005)"),
        folder / "file",
    )
    assert said.splitlines() == ["True True", "True True", "True"]


def test_r28_a_handler_that_closes_the_region_it_interrupts(
    run: Callable[..., str], mount: Callable[..., Path]
) -> None:
    folder = mount("tmpfs", "size=300m")
    said = run(
        STORM
        + """
def close(*_):
    try:
        region.close()
    except RuntimeError as error:
        say(error)
signal.signal(signal.SIGALRM, close)
signal.setitimer(signal.ITIMER_REAL, 0.005)
region.resize(1 << 28)
say(len(region))
region.close()
""",
        folder / "file",
    )
    assert said.splitlines() == [
        "a signal handler cannot resize or close the region whose resize() it interrupted",
        str(1 << 28),
    ]


def test_r28_memory_runs_out(run: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("_testcapi")
    said = run(
        STORM
        + """
import _testcapi
def attempt(call, check):
    failures = 0
    for n in range(400):
        _testcapi.set_nomemory(n, n + 1)
        try:
            call()
        except (MemoryError, RuntimeError):     # RuntimeError: "can't allocate lock"
            failures += 1
        finally:
            _testcapi.remove_mem_hooks()
        check()
    assert failures > 3, failures

def lock_is_free():
    assert not lock.locked()

def use_lock():
    with lock:
        word.fetch_add(1)

def open_and_close():
    with Region.open(path, 1 << 17) as other:
        other.lock(0)
        other.atomic(0)
        other.resize(1 << 18)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

use_lock()
open_and_close()
sys.unraisablehook = lambda info: None      # finalisers run out of memory too
import warnings
warnings.simplefilter("ignore")
gc.collect()
before = descriptors()
attempt(lambda: (region.pread(1000, 0), region.pwrite(bytearray(3), 5), region.atomic(0), region.lock(0)), lock_is_free)
attempt(open_and_close, gc.collect)
def new_lock():
    with region.lock(0):
        bytes(1000)
attempt(new_lock, lock_is_free)
gc.collect()
say(descriptors() - before, lock_ends(lock))
region.close()
""",
        tmp_path / "file",
    )
    assert said == "0 False"


def test_r28_a_stopped_owner_holds_others_up_and_nobody_robs_it(start: Callable, tmp_path: Path) -> None:
    script = """
        with Region.open(sys.argv[1], 4096) as region:
            lock = region.lock(0)
            with lock:
                say("held", lock.owner_died)
                hear()
        """
    owner = start(script, tmp_path / "file")
    owner.expect("held False")
    owner.signal(signal.SIGSTOP)
    with Region.open(tmp_path / "file") as region:
        assert region.lock(0).acquire(timeout=0.5) is False
        owner.signal(signal.SIGCONT)
        owner.tell()
        owner.finish()
        with region.lock(0) as lock:
            assert not lock.owner_died
