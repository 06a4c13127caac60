"""SIGBUS: a file truncated under its mapping costs a MappingLost; any other SIGBUS ends the process, as it should."""

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

# What a peer does: makes a region, loses its end, and looks at it in every way.
LOSE = """
import ctypes, faulthandler, mmap
from mmapds import MappingLost
path = sys.argv[1]

def region_of(size=1 << 20, **options):
    return Region.open(path, size, truncate=True, **options)

def foreign_fault():
    # a mapping that is not ours
    with open(path + "-foreign", "w+b") as file:
        file.truncate(8192)
        other = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
        other[5000]

def lost(call):
    try:
        call()
    except MappingLost:
        return True
    return False
"""

DIES = """
{
    "fault": foreign_fault,
    "raise": lambda: signal.raise_signal(signal.SIGBUS),
    "kill": lambda: os.kill(os.getpid(), signal.SIGBUS),
}[sys.argv[2]]()
say("survived")
"""


def script(*parts: str) -> str:
    return LOSE + "\n".join(parts)


EVERY_CALL = """
region = region_of()
view, word, lock = memoryview(region), region.atomic(0), region.lock(8)
os.truncate(path, 4096)
assert bytes(view[4096:]) == bytes(len(view) - 4096)    # zeros, through a view
view[5000] = 1                                          # to nowhere
assert os.stat(path).st_size == 4096
for call in (
    lambda: region.pread(1, 0), lambda: region.pwrite(b"x", 0), lambda: region[0], lambda: region[:10],
    lambda: region[::2], lambda: region.__setitem__(0, 1), lambda: region.__setitem__(slice(0, 4, 2), b"ab"),
    lambda: memoryview(region), lambda: region.atomic(0).load(), word.load, lambda: word.store(1), word.fetch_add,
    lambda: word.exchange(1), lambda: word.compare_exchange(0, 1), lambda: word.wait(0), lambda: word.wait(1),
    lock.acquire, lock.__enter__, region.populate, region.resident, region.flush, lambda: region.flush(wait=False),
    lambda: region.advise("normal"), region.resize, region.read, region.readline, lambda: region.write(b"x"),
):
    assert lost(call), call
with open(path, "rb") as file:
    assert file.read() == bytes(4096)                   # nothing was published
region.close()
view.release()
say("alive")
"""


def test_r09_every_call_says_so(run: Callable[..., str], tmp_path: Path) -> None:
    assert run(script(EVERY_CALL), tmp_path / "file") == "alive"


FIRST_TOUCH = """
calls = {
    "pread": lambda r: r.pread(10, 8192),
    "pread large": lambda r: r.pread(1 << 19, 0),
    "pwrite": lambda r: r.pwrite(b"x", 8192),
    "pwrite large": lambda r: r.pwrite(bytes(1 << 19), 0),
    "item": lambda r: r[8192],
    "slice": lambda r: r[8000:9000],
    "steps": lambda r: r[0:9000:100],
    "set steps": lambda r: r.__setitem__(slice(0, 9000, 100), bytes(90)),
    "populate": lambda r: r.populate(),
    "populate for writing": lambda r: r.populate(write=True),
    "load": lambda r: r.atomic(8192).load(),
    "add": lambda r: r.atomic(8192).fetch_add(1),
    "wait": lambda r: r.atomic(8192).wait(0),
    "lock": lambda r: r.lock(8192).acquire(),
    "readline": lambda r: r.readline(),
}
for name, call in calls.items():
    region = region_of()
    os.truncate(path, 4096)
    assert lost(lambda: call(region)), name
    assert lost(lambda: region[0]), name
    region.close()
say("alive")
"""


def test_r09_the_operation_in_hand(run: Callable[..., str], tmp_path: Path) -> None:
    assert run(script(FIRST_TOUCH), tmp_path / "file") == "alive"


def test_r09_others_go_on(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            healthy = Region.open(path + "-healthy", 1 << 20)
            many = [Region.open(path + f"-{i}", 8192) for i in range(600)]    # more than one chunk of the table
            for region in many[::2]:
                region.close()
            lost_one = region_of()
            os.truncate(path, 0)
            assert lost(lambda: lost_one[0])
            healthy[1000] = 1
            assert not any(lost(lambda: region[5000]) for region in many[1::2])
            again = region_of(8192)
            again[0] = 1
            assert lost(lambda: lost_one[0])
            os.truncate(path + "-599", 0)
            assert lost(lambda: many[599][8000])
            for region in [healthy, lost_one, again, *many]:
                region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "alive"


def test_r09_truncated_by_another_process(start: Callable, run: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    reader = start(
        script(
            """
            region = region_of(1 << 22)
            say("reading")
            while not lost(lambda: region.pread(1 << 22, 0)):
                pass
            say("lost")
            region.close()
            """.replace("\n            ", "\n")
        ),
        path,
    )
    reader.expect("reading")
    run("os.truncate(sys.argv[1], 100)", path)
    reader.expect("lost")
    reader.finish()


def test_r09_threads_that_map_and_lose_at_once(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            def work(n):
                for i in range(150):
                    name = f"{path}-{n}"
                    with Region.open(name, (1 + i % 3) << 18, truncate=True) as region:
                        assert not lost(lambda: region.pread(1 << 18, 0))
                        os.truncate(name, 0)
                        assert lost(lambda: region.pread(1 << 18, 0))
                done.append(n)
            done = []
            threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            say(sorted(done))
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "[0, 1, 2, 3, 4, 5]"


def test_r09_a_lock_is_not_taken_on_a_page_of_zeros(start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "file"
    holder = start(
        """
        region = Region.open(sys.argv[1], 1 << 20)
        with region.lock(8):
            say("held")
            hear()
        """,
        path,
    )
    holder.expect("held")
    other = start(
        script(
            """
            region = Region.open(path, 1 << 20)
            lock = region.lock(8)
            assert not lock.acquire(0.01)
            say(memoryview(region)[(1 << 20) - 1])
            hear()
            memoryview(region).obj
            view = memoryview(region)
            say(view[8192])
            say(lost(lambda: lock.acquire(0)), lost(lambda: lock.__enter__()))
            view.release()
            region.close()
            """.replace("\n            ", "\n")
        ),
        path,
    )
    other.expect("0")
    os.truncate(path, 4096)  # the lock's page stays, another one goes
    other.tell()
    other.expect("0")
    other.expect("True True")
    other.finish()
    assert path.read_bytes()[8:16] != bytes(8)  # still the holder's
    holder.kill()


# ---- other handlers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_r09_with_faulthandler(start: Callable, tmp_path: Path, when: str) -> None:
    enable = "faulthandler.enable()\n"
    peer = start(
        script(
            enable if when == "before" else "",
            "first = Region.open(path + '-first', 10)",
            enable if when == "between" else "",
            EVERY_CALL.replace("os.truncate", ("" if when != "after" else "faulthandler.enable(); ") + "os.truncate"),
            "first.close()",
        ),
        tmp_path / "file",
    )
    peer.expect("alive")
    assert peer.wait() == 0
    # One that is in front of ours reports before it passes the signal on; that cannot be helped.
    assert ("Bus error" in peer.errors) == (when == "after")


@pytest.mark.parametrize("fatal", ["fault", "raise", "kill"])
@pytest.mark.parametrize("when", ["never", "before", "after"])
@pytest.mark.parametrize("repaired", [False, True], ids=["first", "repaired"])
def test_any_other_sigbus_is_fatal(start: Callable, tmp_path: Path, when: str, fatal: str, repaired: bool) -> None:
    peer = start(
        script(
            "faulthandler.enable()" if when == "before" else "",
            "region = region_of()",
            "faulthandler.enable()" if when == "after" else "",
            "os.truncate(path, 0); assert lost(lambda: region[0])" if repaired else "",
            DIES,
        ),
        tmp_path / "file",
        fatal,
    )
    assert peer.wait() == -signal.SIGBUS
    assert peer.line() == ""
    assert ("Fatal Python error: Bus error" in peer.errors) == (when != "never")


def test_a_python_handler_from_before_still_runs(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            heard = []
            signal.signal(signal.SIGBUS, lambda *_: heard.append(1))
            region = region_of()
            os.kill(os.getpid(), signal.SIGBUS)
            assert heard == [1]
            os.truncate(path, 0)
            assert lost(lambda: region[0])
            assert heard == [1]
            signal.signal(signal.SIGBUS, signal.SIG_IGN)
            second = Region.open(path, 100)
            os.kill(os.getpid(), signal.SIGBUS)     # ignored, as it was
            os.truncate(path, 0)
            assert lost(lambda: second[0])
            region.close()
            second.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "alive"


HANDLER = r"""
#include <setjmp.h>
#include <signal.h>
static sigjmp_buf back;
static struct sigaction before;
static int chain;
int caught;
static void handler(int signal, siginfo_t *info, void *context)
{
    caught++;
    if (chain && (before.sa_flags & SA_SIGINFO))
        before.sa_sigaction(signal, info, context);
    else
        siglongjmp(back, 1);
}
void install(int chained)
{
    struct sigaction mine = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    chain = chained;
    sigaction(SIGBUS, &mine, &before);
}
int touch(volatile char *where)
{
    if (sigsetjmp(back, 1))
        return -1;
    return *where;
}
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library with a SIGBUS handler of its own."""
    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    if compiler is None:
        pytest.skip("no C compiler here")
    source, built = tmp_path / "handler.c", tmp_path / "handler.so"
    source.write_text(HANDLER)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source)], check=True)
    return built


LIBRARY = """
library = ctypes.CDLL(sys.argv[2])
caught = ctypes.c_int.in_dll(library, "caught")
library.touch.argtypes = [ctypes.c_void_p]

def foreign_page():
    with open(path + "-foreign", "w+b") as file:
        file.truncate(8192)
        other = mmap.mmap(file.fileno(), 8192)
        address = ctypes.addressof(ctypes.c_char.from_buffer(other))
        file.truncate(0)
    return other, address
"""


def test_a_handler_in_c_from_before_gets_what_is_not_ours(
    run: Callable[..., str], library: Path, tmp_path: Path
) -> None:
    said = run(
        script(
            LIBRARY,
            """
library.install(0)
region = region_of()
other, address = foreign_page()
assert library.touch(address + 5000) == -1
assert caught.value == 1
assert library.touch(address + 5000) == -1
assert caught.value == 2
os.truncate(path, 0)
assert lost(lambda: region[0])
assert caught.value == 2
region.close()
say("alive")
""",
        ),
        tmp_path / "file",
        library,
    )
    assert said == "alive"


def test_a_handler_in_c_from_later_may_chain_to_ours(run: Callable[..., str], library: Path, tmp_path: Path) -> None:
    said = run(
        script(
            LIBRARY,
            """
region = region_of()
library.install(1)
os.truncate(path, 0)
assert lost(lambda: region[0])
assert caught.value == 1
again = region_of()                 # ours in front once more, and theirs behind it
os.truncate(path, 0)
assert lost(lambda: again[0])
assert caught.value == 1
region.close()
again.close()
say("alive")
""",
        ),
        tmp_path / "file",
        library,
    )
    assert said == "alive"


def test_handlers_that_chain_to_each_other_end_in_death(start: Callable, library: Path, tmp_path: Path) -> None:
    peer = start(
        script(LIBRARY, "region = region_of()\nlibrary.install(1)\nagain = Region.open(path)\nforeign_fault()"),
        tmp_path / "file",
        library,
    )
    assert peer.wait() == -signal.SIGBUS


def test_r09_in_a_fork(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            region = region_of()
            if (child := os.fork()) == 0:
                os.truncate(path, 0)
                os._exit(0 if lost(lambda: region[0]) else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert lost(lambda: region[0])
            region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "alive"


# ---- a full disk, at the touch ----------------------------------------------------------------------------------


def test_r10_a_sparse_file_on_a_full_disk(run: Callable[..., str], mount: Callable[..., Path]) -> None:
    path = mount("tmpfs", "size=1m") / "file"
    said = run(
        script(
            """
            region = Region.open(path, 1 << 24, reserve=False)
            assert lost(lambda: region.pwrite(bytes(1 << 24), 0))
            assert lost(lambda: region[0])
            region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        path,
    )
    assert said == "alive"
