"""SIGBUS and other handlers: ours repairs what is ours, passes the rest on, and nothing else survives by it."""

import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from sigbus import DIES, EVERY_CALL, script


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
