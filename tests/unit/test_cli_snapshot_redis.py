"""``mmapds snapshot PATH build --redis URL``: from a real server, and from none."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from shell import in_process

from mmapds import SnapshotMap
from mmapds.bench import peers
from mmapds.cli._snapshot_sources import lifetime


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """build(word, ...)"""
    here = in_process(capsys, "snapshot")
    return lambda *words: here(tmp_path / "m", "build", *words)


@pytest.fixture
def m(tmp_path: Path) -> Callable[[], dict[Any, Any]]:
    """What the map holds."""

    def m() -> dict[Any, Any]:
        with SnapshotMap(tmp_path / "m", mode="readonly") as m:
            return {key: bytes(value) for key, value in m.items()}

    return m


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with ExitStack() as stack:
        client = peers.redis(stack, str(tmp_path_factory.mktemp("redis")))
        if isinstance(client, str):
            pytest.skip(client)
        yield client


@pytest.fixture
def redis(server: Any) -> Any:
    server.flushall()
    return server


@pytest.fixture
def url(redis: Any) -> str:
    return f"redis://127.0.0.1:{redis.get_connection_kwargs()['port']}/0"


def test_redis(redis, url, build, m, tmp_path):
    wanted = {f"key {i}": b"value %d" % i for i in range(3000)} | {"": b"", "größe": b"\xff\0"}
    redis.mset(wanted)
    redis.set("soon", b"x", px=100_000)
    redis.set("in ages", b"x", ex=5_000_000_000)
    redis.lpush("list", 1)
    redis.hset("hash", "a", 1)
    redis.hset("another", "a", 1)
    status, out, err = build("--redis", url, "--json")
    assert (status, err) == (0, "mmapds: left out 3 keys that are no strings: hash 2, list 1\n")
    assert json.loads(out) == {
        "path": str(tmp_path / "m"),
        "entries": len(wanted) + 2,
        "expiring": 2,
        "skipped": {"hash": 2, "list": 1},
    }
    assert m() == wanted | {"soon": b"x", "in ages": b"x"}
    with SnapshotMap(tmp_path / "m") as handle:
        assert handle.codec.name == "raw"
        assert 0 < lifetime(handle, "soon") <= 100
        assert 9e8 < lifetime(handle, "in ages") < 1e9
        assert lifetime(handle, "key 1") is None


def test_redis_with_a_pattern_a_codec_and_another_database(redis, url, build, m):
    redis.mset({"a1": "x", "a2": "y", "b": "z"})
    assert build("--redis", url, "--match", "a*", "--codec", "msgpack", "--metadata", "1") == (0, "2\n", "")
    assert m() == {"a1": b"x", "a2": b"y"}
    assert build("--redis", url[:-1] + "1") == (0, "0\n", "")
    assert m() == {}
    redis.mset({f"n{i}": struct.pack("<q", i) for i in range(10)})
    said = build("--redis", url, "--codec", "struct:<q")
    assert (said.status, said.out) == (1, "")


def test_redis_keys_that_are_no_text(redis, url, build, m, tmp_path):
    before = list(tmp_path.iterdir())
    redis.mset({b"\xff\xfe": "x", b"a": "y"})
    status, out, err = build("--redis", url)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "--bytes-keys" in err
    assert repr(b"\xff\xfe") in err
    assert [path for path in tmp_path.iterdir() if path not in before and path.name != "m"] == []
    redis.set(b"\xfd", "z", ex=1000)
    assert build("--redis", url, "--bytes-keys") == (0, "3\n", "")
    assert m() == {b"\xff\xfe": b"x", b"a": b"y", b"\xfd": b"z"}


def test_redis_batches_are_as_large_as_what_is_in_them(redis, url, build, m):
    large = bytes(1 << 20)
    redis.mset({f"large {i}": large for i in range(40)})
    assert build("--redis", url, "--memory-limit", "4M") == (0, "40\n", "")
    assert m() == {f"large {i}": large for i in range(40)}


def test_redis_that_cannot_be_used(redis, url, build, tmp_path):
    for there, status, why in (
        ("http://127.0.0.1:1/", 2, "redis://"),
        ("redis://user:secret@127.0.0.1:1/3", 1, "Redis at 127.0.0.1:1, database 3: "),
        (f"unix://{tmp_path}/none", 1, f"Redis at {tmp_path}/none, database 0: "),
        (url.replace("//", "//user:secret@"), 1, "nothing was built"),
        (url[:-1] + "99", 1, "nothing was built"),
    ):
        said = build("--redis", there)
        assert (said.status, said.out, said.err.count("\n")) == (status, "", 1), there
        assert why in said.err
        assert "secret" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_redis_without_its_client(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    said = build("--redis", "redis://127.0.0.1:1/")
    assert said == (1, "", "mmapds: --redis needs the client of Redis for Python: pip install mmapds[redis]\n")
