"""Queue: codecs and schemas, limits, compression."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import queuefiles

from mmapds import Full, Queue, SchemaMismatch, codecs

# ---- codecs --------------------------------------------------------------------------------------------------------


class Upper:
    """A codec of the user's."""

    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, data: memoryview) -> str:
        return bytes(data).decode()


CODECS: list[tuple[Any, Any]] = [
    ("raw", b"bytes"),
    ("msgpack", {"a": [1, None, b"x"]}),
    ("struct:<iq", (1, -(1 << 40))),
    ("numpy:<f8", np.arange(5.0)),
    (np.dtype("int16"), np.arange(6, dtype="int16")),
    (codecs.Pickle(), {1, 2, (3, 4)}),
    (Upper(), "TEXT"),
]


@pytest.mark.parametrize(("codec", "value"), CODECS, ids=lambda value: str(value)[:30])
def test_codecs(queue_path: str, codec: Any, value: Any) -> None:
    with Queue(queue_path, codec=codec) as q:
        for _ in range(6):
            q.put(value)
        found = [q.get(), *q.get_many(1), q.claim().item, q.peek(), q.peek_last(), next(iter(q))]
        q.claim().bury()
        found += [letter.item for letter in q.dead]
        assert len(found) == 7
        for one in found:
            assert np.array_equal(one, value) if isinstance(value, np.ndarray) else one == value
    if isinstance(codec, str):  # what a text says is taken from the file
        with Queue(queue_path) as q:
            assert q.codec.name == codec
    with pytest.raises(SchemaMismatch) as caught:
        Queue(queue_path, codec="struct:<q")
    assert "struct:<q" in str(caught.value)
    for mode in ("readonly", "private"):
        with Queue(queue_path, mode=mode, codec=codec) as q:  # type: ignore[arg-type]
            assert len(q) == 3


def test_a_schema_is_stored(queue_path: str) -> None:
    with Queue(queue_path, schema="orders 1") as q:
        q.put(1)
    with Queue(queue_path, schema="orders 1") as q:
        assert q.get() == 1
    with pytest.raises(SchemaMismatch, match="orders 2") as caught:
        Queue(queue_path, schema="orders 2")
    assert "orders 1" in str(caught.value)


# ---- limits --------------------------------------------------------------------------------------------------------


def test_maxsize_counts_what_waits(queue_path: str) -> None:
    with Queue(queue_path, 3) as q, Queue(queue_path) as other:
        q.put(0, delay=1000)
        q.put_many([1, 2])
        assert q.full()
        assert other.full()
        for put in (
            q.put_nowait,
            other.put_nowait,
            lambda item: q.put(item, False),
            lambda item: q.put(item, timeout=0),
        ):
            with pytest.raises(Full):
                put(3)
        claim = other.claim()  # does not wait any more
        assert not q.full()
        q.put(3)
        with pytest.raises(Full):
            q.put_nowait(4)
        claim.nack(0)  # what comes back finds room
        assert (len(q), q.full()) == (4, True)
        assert q.get_many(10) == [1, 2, 3]


def test_max_bytes_counts_what_waits(queue_path: str) -> None:
    with Queue(queue_path, codec="raw", max_bytes=1000) as q:
        with pytest.raises(Full) as caught:
            q.put_many([b"x" * 100] * 10, block=False)
        assert 5 <= caught.value.args[0] < 10
        assert 0 < q.stats()["bytes"] <= 1000
        for _ in range(3):
            q.get()
            q.put_nowait(b"x" * 100)
        with pytest.raises(Full):
            q.put_nowait(b"x" * 100)
        q.purge()
        q.put_nowait(b"x" * 800)
        with pytest.raises(ValueError, match="can never fit"):
            q.put(b"x" * 1000)
        assert len(q) == 1


def test_put_many_says_how_many_were_put(queue_path: str) -> None:
    with Queue(queue_path, 10) as q:
        with pytest.raises(Full) as caught:
            q.put_many(range(15), block=False)
        assert caught.value.args == (10,)
        assert q.get_many(4) == [0, 1, 2, 3]
        with pytest.raises(Full) as caught:
            q.put_many("abcdef", timeout=0.01)
        assert caught.value.args == (4,)
        assert q.get_many(100) == [4, 5, 6, 7, 8, 9, "a", "b", "c", "d"]


# ---- compression ---------------------------------------------------------------------------------------------------


def test_what_is_large_enough_is_compressed(queue_path: str) -> None:
    text, noise = b"abc" * 10_000, os.urandom(3000)
    with Queue(queue_path, codec="raw", compress="zlib:6:100") as q:
        q.put(text)
        assert q.stats()["bytes"] < 1000
        q.put(b"abc" * 30)  # below
        q.put(noise)  # gets no smaller
        q.put(b"")
        q.put(text)
        q.put(text)
    payloads = [record.payload for record in queuefiles.check(queue_path).plain()]
    assert [len(data) for data in payloads[1:4]] == [90, 3000, 0]
    assert all(len(payloads[i]) < 300 for i in (0, 4, 5))
    with Queue(queue_path) as q:
        assert q.compress == "zlib:6:100"
        assert list(q) == [text, b"abc" * 30, noise, b"", text, text]
        assert q.get() == text
        assert q.get_many(3) == [b"abc" * 30, noise, b""]
        with q.claim() as claim:
            assert claim.item == text
        q.claim().bury("as it is")
        assert [letter.item for letter in q.dead] == [text]
        assert q.dead.requeue() == 1
        assert q.stats()["bytes"] < 1000
        assert q.get() == text
