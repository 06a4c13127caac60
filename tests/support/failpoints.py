"""Processes that are killed, failed or held at any named point of what they do: the build with failpoints.

A point lies before each shared store and each ordered look of the native code (mmapds/_native/failpoints.h), and before
each system call that changes, maps, locks, reads or syncs a file in the folder that is watched, or sleeps or wakes on a
word of it (failpoints.c, which is preloaded). The build is made once, from the sources as they are, into a folder for
temporary files, where later runs and other workers find it. It differs from a release in nothing but the points, and in
being compiled without optimisation, which is faster.

Who runs in it is a `FailPeer`. Code there uses `arm` and `victim`:

    peer("failpoints.victim(path, 'kill', n, prepare, code)")     a child, killed at its point number n
    ...               'fail', n, error=ENOSPC                     its call number n fails
    ...               'record'                                    its points, in order

and from here one process can be held at a point that is named by some of its words, while another goes on:

    peer.hold("s.load()", "leftright_pin load_seq_cst sequence"); other("s.write(1)"); peer.go(); peer.receive()

Prior art: the failpoints of FreeBSD, TiKV and etcd; LD_PRELOAD for errors of the system, as libfiu does it. Rejected:
ptrace for the schedules: an address must be found for each point, in each build (stepping.py does that where every
instruction matters).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import peers

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "mmapds" / "_native"
SHIM = Path(__file__).with_suffix(".c")
FLAGS = (
    "-O0", "-DMMAPDS_FAILPOINTS", "-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden", "-fPIC", "-shared", "-w",
    "-pthread",
)  # fmt: skip
MADE = "FAILPOINTS_MADE"  # in the environment: the folders of `modules` and `package`, if they are made already
MODES = {"off": 0, "record": 1, "kill": 2, "fail": 3, "hold": 4}
STORE, CALL, LOOK, READ = 1, 2, 4, 8
_NAMES, _NAME, _ORDER = 4096, 240, 1 << 18
_AT, _NEXT = 8, 8 + _NAME
_NEXT_NUMBER = _NEXT + _NAME
_TABLE = _NEXT_NUMBER + 8
_SEEN = _TABLE + _NAMES * _NAME
CONTROL_SIZE = _SEEN + 2 * _ORDER

# ---- the build -----------------------------------------------------------------------------------------------------


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def missing() -> str | None:
    """Why nothing of this works here, if so."""
    if compiler() is None:
        return "no C compiler, to make the build with failpoints"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h, to make the build with failpoints"
    if os.uname().machine not in ("x86_64", "aarch64"):
        return f"the preloaded library is not written for {os.uname().machine}"
    try:
        import Cython  # noqa: F401
    except ImportError:
        if not _fresh():
            return "no Cython, and the sources were changed since it ran"
    return None


def _sources() -> list[Path]:
    return sorted([*NATIVE.glob("*.pyx"), *NATIVE.glob("*.pxd"), *NATIVE.glob("*.h")])


def _fresh() -> bool:
    """Whether what Cython has made of the sources, for the build in place, is there and newer than they are."""
    made = [path.with_suffix(".c") for path in NATIVE.glob("*.pyx")]
    if not all(path.exists() for path in made):
        return False
    newest = max(path.stat().st_mtime for path in [*NATIVE.glob("*.pyx"), *NATIVE.glob("*.pxd")])
    return min(path.stat().st_mtime for path in made) >= newest


@cache
def modules() -> Path:
    """The folder with the extension modules and the preloaded library, made if need be. One makes it, others wait."""
    if MADE in os.environ:
        return Path(os.environ[MADE].split(os.pathsep)[0])
    digest = hashlib.sha256(repr((2, FLAGS, sys.version, compiler())).encode())  # 2: what _make makes
    for path in [*_sources(), SHIM]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    base = Path(tempfile.gettempdir(), f"mmapds-failpoints-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        base.mkdir(0o700)
    status = base.lstat()
    assert status.st_uid == os.getuid(), f"{base} belongs to somebody else"
    assert status.st_mode & 0o77 == 0, f"{base} is open to others"
    target = base / digest.hexdigest()[:20]
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for dead in base.glob("making-*"):  # of who was killed: we have the lock
                shutil.rmtree(dead)
            for old in sorted(base.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-2]:
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=base, prefix="making-") as making:
                _make(Path(making))
                (Path(making) / "done").rename(target)
    return target


def _make(folder: Path) -> None:
    native = folder / "mmapds" / "_native"
    native.mkdir(parents=True)
    for path in _sources():
        shutil.copy2(path, native)
    if _fresh():
        for path in NATIVE.glob("*.pyx"):
            shutil.copy2(path.with_suffix(".c"), native)
    else:
        from Cython.Build import cythonize

        shutil.copy2(NATIVE / "__init__.py", native)
        shutil.copy2(NATIVE.parent / "__init__.py", native.parent)
        here = os.getcwd()
        os.chdir(folder)
        try:
            cythonize(["mmapds/_native/*.pyx"], quiet=True, nthreads=0)
        finally:
            os.chdir(here)
    done = folder / "done"
    done.mkdir()
    with ThreadPoolExecutor(2) as pool:
        sources = sorted(native.glob("*.c"), key=lambda path: -path.stat().st_size)
        list(pool.map(lambda source: _compile(source, native, done), sources))
    for source in native.glob("*.c"):
        source.rename(done / source.name)  # for `broken`
    shim = [compiler() or "cc", "-O1", "-shared", "-fPIC", "-o", str(done / "failpoints.so"), str(SHIM), "-ldl"]
    subprocess.run(shim, check=True)


def _compile(source: Path, headers: Path, to: Path) -> None:
    target = to / (source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
    include = sysconfig.get_paths()["include"]
    command = [compiler() or "cc", *FLAGS, f"-I{include}", f"-I{headers}", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)


@cache
def package() -> str:
    """A folder from which the build is imported: its modules, and the Python sources as they are. It lives as long as
    we do."""
    if MADE in os.environ:
        return os.environ[MADE].split(os.pathsep)[1]
    made = modules()
    folder = tempfile.TemporaryDirectory(prefix="mmapds-failpoints-")
    _kept.append(folder)
    for source in (ROOT / "mmapds").rglob("*.py"):
        target = Path(folder.name) / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    for module in made.glob("*" + sysconfig.get_config_var("EXT_SUFFIX")):
        (Path(folder.name) / "mmapds" / "_native" / module.name).hardlink_to(module)  # old builds are removed
    return folder.name


def broken(file: str, old: str, new: str, *native: str) -> str:
    """The same with a fault that is put in on purpose: in a Python source, or in a header of these native modules."""
    package.__wrapped__()
    folder = _kept[-1].name
    text = (ROOT / "mmapds" / file).read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    target = Path(folder, "mmapds", file)
    if not native:
        target.unlink()
        target.write_text(text.replace(old, new))
        return folder
    headers = Path(folder, "headers")
    headers.mkdir()
    for path in NATIVE.glob("*.h"):
        shutil.copy2(path, headers)
    (headers / Path(file).name).write_text(text.replace(old, new))
    for name in native:
        (target.parent / (name + sysconfig.get_config_var("EXT_SUFFIX"))).unlink()
        _compile(modules() / f"{name}.c", headers, target.parent)
    return folder


_kept: list[tempfile.TemporaryDirectory[str]] = []

# ---- from the test's side ------------------------------------------------------------------------------------------

_PREFIX = re.compile(r"^__pyx_(?:f|pf|pw)_[0-9a-z]+?_7_native_\d+")
_SELF = re.compile(r"__pyx_v_|__pyx_|\(\(struct [^)]*\)|\*\)|self->_+base\.|[()& ]")


def shown(name: str) -> str:
    """A name as people read it: without what Cython adds."""
    if name.startswith("call "):
        return name
    function, operation, word = name.split(" ", 2)
    if found := _PREFIX.match(function):
        function = function[found.end() :]
        function = re.sub(r"^[a-z]+?_(?:\d+)?", "", function) or function
    return f"{function} {operation} {_SELF.sub('', word)}"


class Died(Exception):  # noqa: N818
    """The process ended while it was to be held."""


class FailPeer(peers.Peer):
    """A peer that runs the build with failpoints. `folder`: what is watched; `build`: another one, see `broken`."""

    def __init__(self, setup: str = "", *, folder: str | Path, build: str = "", **names: Any) -> None:
        build = build or package()
        self._control = tempfile.NamedTemporaryFile(prefix="mmapds-points-")  # noqa: SIM115  closed with the peer
        self._control.truncate(CONTROL_SIZE)
        self._said, say = os.pipe()
        hear, self._answer = os.pipe()
        for end in (say, hear):
            os.set_inheritable(end, True)
        env = {
            "LD_PRELOAD": str(modules() / "failpoints.so"),
            "FAILPOINTS_CONTROL": self._control.name,
            "FAILPOINTS_PIPES": f"{say} {hear}",
            "FAILPOINTS_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join([build, str(peers.SUPPORT)]),
        }
        try:
            super().__init__(env=env, close_fds=False)
        finally:
            os.close(say)
            os.close(hear)
        try:
            where = self("import failpoints, mmapds\nmmapds.__file__")
            assert where.startswith(build), f"the peer runs {where}"
            if setup or names:
                self(setup, **names)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def at(self) -> str:
        """Where it was killed, failed or held last."""
        return os.pread(self._control.fileno(), _NAME, _AT).partition(b"\0")[0].decode()

    def seen(self) -> list[str]:
        """The points that were recorded last, in order."""
        fd = self._control.fileno()
        names, order = (int.from_bytes(os.pread(fd, 4, n), "little") for n in (0, 4))
        assert order < _ORDER, "more points than are kept"
        table = [os.pread(fd, _NAME, _TABLE + n * _NAME).partition(b"\0")[0].decode() for n in range(names)]
        numbers = os.pread(fd, 2 * order, _SEEN)
        return [table[int.from_bytes(numbers[2 * n : 2 * n + 2], "little")] for n in range(order)]

    def hold(self, code: str, match: str = "", number: int = 0, kinds: int = STORE | CALL | LOOK, **names: Any) -> str:
        """Begins the code, and returns when it is held at the point `number` (from 0) of those whose names have the
        words of `match`, in that order: its name. `go` lets it go on. `Died` if it never came to it: `receive` has what
        became of it."""
        self(f"failpoints.ready({match!r}, {number}, {kinds})")
        self.send("failpoints.held(held_code, globals())", held_code=code, **names)
        return self.wait_held(f"{match!r} {number}")

    def wait_held(self, what: str = "") -> str:
        assert self.process.stdout is not None
        answers = self.process.stdout.fileno()
        ready = select.select([self._said, answers], [], [], peers.WATCHDOG)[0]
        if self._said in ready and os.read(self._said, 1):
            return self.at()
        if not ready:
            self.kill()
            raise TimeoutError(f"neither held nor done after {peers.WATCHDOG} s: {what}\n{self.stderr()}")
        raise Died(f"it never came to {what}; {self.stderr()}")

    def go(self, match: str | None = None, number: int = 0, kinds: int = STORE | CALL | LOOK) -> str:
        """Lets it go on; with `match`, to where it is held next, and returns when it is there."""
        if match is None:
            os.write(self._answer, b"g")
            return ""
        fd = self._control.fileno()
        os.pwrite(fd, match.encode().ljust(_NAME, b"\0"), _NEXT)
        os.pwrite(fd, number.to_bytes(4, "little") + kinds.to_bytes(4, "little"), _NEXT_NUMBER)
        os.write(self._answer, b"n")
        return self.wait_held(match)

    def fail(self, error: int) -> None:
        """The call that it is held at returns an errno."""
        os.write(self._answer, bytes([128 + error]))

    def refused(self, error: int = errno.EIO) -> tuple[str, str]:
        """The same, for code that must raise then; (name of the exception, message)."""
        self.fail(error)
        try:
            value = self.receive()
        except peers.PeerError as caught:
            return caught.name, caught.message
        raise AssertionError(f"no exception from a call that failed; it gave {value!r}")

    def kill(self) -> None:
        super().kill()
        for descriptor in (self._said, self._answer):
            if descriptor >= 0:
                os.close(descriptor)
        self._said = self._answer = -1

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[arg-type]
        self._control.close()

    def victim(self, what: str, number: int, prepare: str, code: str, **options: Any) -> Outcome:
        """See `victim` below; and where it happened."""
        found = self(
            "failpoints.victim(how, number, before, job, **options)",
            how=what, number=number, before=prepare, job=code, options=options,
        )  # fmt: skip
        return Outcome(*found, at=self.at())


class Outcome(NamedTuple):
    """What became of a victim: `status` 0 if it came to its end. `error` and `number`: the class and the errno of what
    was raised; `hits`: points that were come to; `left`: what it still had when its handles were closed."""

    status: int
    hits: int
    error: str
    number: int
    message: str
    left: list[str]
    at: str = ""


# ---- in the peer ---------------------------------------------------------------------------------------------------


@cache
def _library() -> Any:
    library = ctypes.CDLL(None)
    library.failpoints_arm.argtypes = (
        *[ctypes.c_int] * 2, ctypes.c_long, ctypes.c_int, *[ctypes.c_char_p] * 2, *[ctypes.c_int] * 2,
    )  # fmt: skip
    library.failpoints_arm.restype = None
    library.failpoints_disarm.restype = ctypes.c_long
    return library


def arm(how: str, number: int = 0, kinds: int = STORE | CALL, error: int = 0, match: str = "") -> None:
    """From here on, in this thread. What is armed in the process is forgotten."""
    say, hear = map(int, os.environ["FAILPOINTS_PIPES"].split())
    _library().failpoints_arm(
        MODES[how], kinds, number, error, match.encode(), os.environ["FAILPOINTS_FOLDER"].encode(), say, hear
    )


def disarm() -> int:
    """How many points counted."""
    hits: int = _library().failpoints_disarm()
    return hits


_next: tuple[Any, ...] = ()


def ready(match: str, number: int, kinds: int) -> None:
    """For `held`, which follows."""
    global _next
    _next = ("hold", number, kinds, 0, match)


def held(code: str, scope: dict[str, Any]) -> Any:
    """The value of the code's last expression."""
    arm(*_next)
    try:
        return peers._execute(code, scope)
    finally:
        disarm()  # it may have been told to be held again, and never have come to it


def _possessions() -> list[str]:
    """Descriptors of, and mappings into, the watched folder."""
    folder = os.environ["FAILPOINTS_FOLDER"]
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append("fd " + os.readlink(f"/proc/self/fd/{name}"))
    maps = Path("/proc/self/maps").read_text().splitlines()
    found += ["map " + line.split(maxsplit=5)[5].strip() for line in maps if folder in line]
    return sorted(one for one in found if folder in one)


def victim(
    how: str, number: int, prepare: str, code: str, *, kinds: int = STORE | CALL, error: int = 0, match: str = "",
    after: str = "", names: dict[str, Any] | None = None,
) -> tuple[int, int, str, int, str, list[str]]:  # fmt: skip
    """Runs `prepare`, then `code`, which is armed, in a child; it ends when it has been looked at.

    If it was not killed: `after` is run when the code is over, however it ended; then its handles are closed, which
    should leave no descriptor and no mapping of what is watched behind.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            _be_victim(writing, how, number, prepare, code, kinds, error, match, after, names or {})
            status = 0
        except BaseException:  # noqa: BLE001  it must not return into the code of the peer
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status or not said:
        return status, -1, "", 0, "", []
    hits, name, found, message, left = eval(said.decode())
    return status, hits, name, found, message, left


def _be_victim(
    out: int, how: str, number: int, prepare: str, code: str, kinds: int, error: int, match: str, after: str,
    names: dict[str, Any],
) -> None:  # fmt: skip
    import gc
    import warnings

    import mmapds

    warnings.simplefilter("ignore", ResourceWarning)  # of what is left behind when it fails
    signal.alarm(60)
    before = _possessions()
    scope: dict[str, Any] = {"mmapds": mmapds, "os": os, **names}
    exec(compile(prepare, "<prepare>", "exec"), scope)
    compiled = compile(code, "<code>", "exec")
    gc.collect()
    gc.disable()
    name, found, message = "", 0, ""
    arm(how, number, kinds, error, match)
    try:
        exec(compiled, scope)
    except Exception as raised:  # noqa: BLE001  told to who asked
        hits = disarm()
        name, found, message = type(raised).__name__, getattr(raised, "errno", 0) or 0, str(raised)
        if os.environ.get("FAILPOINTS_TRACE"):
            traceback.print_exc()
        raised.__traceback__ = None
    else:
        hits = disarm()
    gc.enable()
    scope.update(error=name, number=found)
    exec(compile(after, "<after>", "exec"), scope)
    for one in scope.values():
        if type(one).__module__.startswith("mmapds"):
            getattr(one, "release", getattr(one, "close", list))()
    one = None
    scope.clear()
    gc.collect()
    left = [one for one in _possessions() if one not in before]
    os.write(out, repr((hits, name, found, message, left)).encode())


# ---- errors of calls -----------------------------------------------------------------------------------------------

_ERRORS = {
    "open_tmpfile": (errno.ENOSPC, errno.EACCES, errno.EMFILE),
    "open_create": (errno.ENOSPC, errno.EACCES, errno.EMFILE),
    "open_path": (errno.EACCES, errno.EMFILE, errno.EIO),
    "open_read": (errno.EACCES, errno.EMFILE, errno.EIO),
    "open_write": (errno.EACCES, errno.EMFILE, errno.EIO, errno.EINTR),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "rename": (errno.EACCES, errno.EIO, errno.ENOSPC),
    "link": (errno.EACCES, errno.EIO, errno.ENOSPC),
    "unlink": (errno.EACCES, errno.EIO),
    "fchmod": (errno.EPERM, errno.EIO),
    "ftruncate": (errno.EIO, errno.EINTR),
    "fallocate": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "posix_fallocate": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "pwrite": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "pread": (errno.EIO, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "msync": (errno.EIO, errno.ENOSPC),
    "sync_file_range": (errno.EIO,),
    "mmap": (errno.ENOMEM,),
    "futex_wait": (errno.EINTR,),
}


def errors(name: str) -> tuple[int, ...]:
    """With which a call may fail, by its name."""
    _, what, *rest = name.split()
    if what == "lock":
        return (
            (errno.ENOLCK, errno.EINTR) if rest[0].startswith("wait") else (errno.ENOLCK,) * rest[0].startswith("try")
        )
    return _ERRORS.get(what, ())


def codes(numbers: Iterator[int] | set[int]) -> str:
    """ENOSPC,EIO: for tables."""
    return ",".join(sorted(errno.errorcode[number] for number in numbers))
