"""The public errors: their names, the builtins they are, their messages, errno and pickling."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import multiprocessing
import pickle

import pytest

from mmapds import errors

# Every public name with the builtin under which a caller would catch it. Changing a line here
# changes what users' except clauses catch.
PUBLIC = {
    "MmapdsError": Exception,
    "SchemaMismatch": ValueError,
    "IncompatibleFormat": ValueError,
    "ProtocolMismatch": ValueError,
    "CorruptionError": ValueError,
    "WriterBusy": BlockingIOError,
    "MappingLost": OSError,
    "UnsupportedFilesystem": OSError,
    "DurabilityFailed": OSError,
    "ForkedHandle": RuntimeError,
    "NotInitialised": RuntimeError,
    "Closed": ValueError,
    "ShutDown": Exception,
    "StaleClaim": RuntimeError,
}
ERRNO = {
    "WriterBusy": errno.EAGAIN,
    "MappingLost": errno.EIO,
    "UnsupportedFilesystem": errno.EOPNOTSUPP,
    "DurabilityFailed": errno.EIO,
}
BUILTINS = (ValueError, OSError, BlockingIOError, RuntimeError)

every_error = pytest.mark.parametrize("name", PUBLIC)
every_system_error = pytest.mark.parametrize("name", ERRNO)


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(errors.__all__) == sorted(PUBLIC)
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert defined == set(PUBLIC), f"classes in the module and not pinned: {defined ^ set(PUBLIC)}"


@every_error
def test_each_is_the_base_and_its_builtin_and_no_other(name: str) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.MmapdsError), cls.__mro__
    assert issubclass(cls, PUBLIC[name]), cls.__mro__
    caught_as = {builtin for builtin in BUILTINS if issubclass(cls, builtin)}
    allowed = {builtin for builtin in BUILTINS if issubclass(PUBLIC[name], builtin)}
    assert caught_as == allowed, cls.__mro__


@every_error
def test_each_docstring_says_when_it_is_raised(name: str) -> None:
    text = getattr(errors, name).__doc__ or ""
    assert "raised" in text.partition("\n")[0].lower(), text


@every_error
@pytest.mark.parametrize("message", ["found a, expected b: do c", "", "two\nlines", "é % {0}"])
def test_str_is_exactly_the_message(name: str, message: str) -> None:
    error = getattr(errors, name)(message)
    assert str(error) == message
    assert error.args == (message,)


@every_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_class_message_and_notes(name: str, protocol: int) -> None:
    error = getattr(errors, name)("what was found")
    error.add_note("where")
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert (str(back), back.args, back.__notes__) == ("what was found", error.args, ["where"])
    assert vars(back) == vars(error)


@every_system_error
def test_system_errors_have_an_errno_without_changing_the_message(name: str) -> None:
    cls = getattr(errors, name)
    plain = cls("m")
    assert (plain.errno, plain.path, str(plain)) == (ERRNO[name], None, "m")
    given = cls("m", path="/data/x_sync", errno=errno.ENOSPC)
    assert (given.errno, given.path, str(given)) == (errno.ENOSPC, "/data/x_sync", "m")


@every_system_error
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copies_of_system_errors_keep_errno_and_path(name: str, duplicate) -> None:
    error = getattr(errors, name)("m", path="/p", errno=errno.ENOSPC)
    back = duplicate(error)
    state = (type(back), str(back), back.errno, back.path)
    assert state == (type(error), "m", errno.ENOSPC, "/p")


def test_writer_busy_names_the_holder() -> None:
    error = errors.WriterBusy("busy", path="/p", holder="pid 12 (python)")
    back = pickle.loads(pickle.dumps(error))
    for which in (error, back):
        state = (str(which), which.path, which.holder, which.errno)
        assert state == ("busy", "/p", "pid 12 (python)", errno.EAGAIN)
    assert errors.WriterBusy("busy").holder is None


def test_an_error_crosses_a_process_boundary() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        error = pool.submit(pickle.loads, pickle.dumps(errors.WriterBusy("b", holder="h"))).result()
    assert (type(error), str(error), error.holder) == (errors.WriterBusy, "b", "h")
