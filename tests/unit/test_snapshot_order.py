"""SnapshotMap: the order of keys, and walking: ranges, prefixes, both directions, over layers, a delta and changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapds import SnapshotMap
from mmapds._snapview import successor

LIMIT = 65536


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "map")
    yield path
    snapmaps.check(path)


HARD = [
    b"", b"\0", b"\0\0", b"\0\1", b"\1", b"a", b"a\0", b"a\0\0\0\0\0\0\0", b"a\0\0\0\0\0\0\0\0", b"a\0b", b"aa",
    b"abcdefg", b"abcdefgh", b"abcdefgh\0", b"abcdefghi", b"abcdefgi", b"b", b"\x7f", b"\x80", b"\xfe", b"\xfe\xff",
    b"\xfe\xff\xff", b"\xff", b"\xff\0", b"\xff\xfe", b"\xff\xff", b"\xff\xff\0", b"\xff\xff\xff", b"\xff" * 8,
    b"\xff" * 9, b"x" * (LIMIT - 1), b"x" * LIMIT, b"x" * (LIMIT - 1) + b"y",
]  # fmt: skip
TEXTS = ["", "\0", "a", "a\0", "ab", "z", "\x7f", "\x80", "é", "éa", "ß", "ÿ", "Ā", "߿", "ࠀ", "中", "中a", "\ud7ff"]
TEXTS += ["\ue000", "\ufffd", "\uffff", "\U00010000", "😀", "😀😀", "\U0010ffff"]  # UTF-16 would put these elsewhere


def expected(
    model: dict[bytes, Any], low: bytes | None, high: bytes | None, reverse: bool = False
) -> list[tuple[bytes, Any]]:
    inside = [key for key in model if (low is None or key >= low) and (high is None or key < high)]
    return [(key, model[key]) for key in sorted(inside, reverse=reverse)]


def spread(path: str, keys: list[Any], **options: Any) -> SnapshotMap:
    """A map of keys -> their place in the list, spread over three layers and the delta: each has been overwritten, some
    were deleted and came back, and others that are gone lie between them.
    """
    with SnapshotMap(path) as m:
        others = [key + ("~" if isinstance(key, str) else b"~") for key in keys if len(key) < LIMIT]
        others = [key for key in others if key not in keys]
        usual = m._files.delta_size
        m._files.delta_size = 2  # each commit becomes a layer
        snapmaps.commit(m, dict.fromkeys([*keys, *others], "old") | {keys[0]: "x" * 6_000_000})
        snapmaps.commit(m, dict.fromkeys(keys[1::3], "newer") | {keys[1]: "x" * 1_200_000}, *keys[3::3], *others[::2])
        snapmaps.commit(m, {key: i for i, key in enumerate(keys) if i % 2}, *others[1::2])
        m._files.delta_size = usual
        snapmaps.commit(m, {key: i for i, key in enumerate(keys) if i % 2 == 0})
    m = SnapshotMap(path, **options)
    assert len(m.stats()["layers"]) == 3, m.stats()
    assert m.stats()["delta"] is not None
    return m


# ---- one order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [HARD, TEXTS], ids=["bytes", "str"])
@pytest.mark.parametrize("how", ["layer", "delta", "spread", "private"])
def test_keys_are_ordered_by_their_bytes(path: str, keys: list[Any], how: str) -> None:
    values = {key: i for i, key in enumerate(keys)}
    shuffled = dict(sorted(values.items(), key=lambda item: hash(item[0])))
    if how == "layer":
        SnapshotMap.build(path, shuffled)
    elif how == "delta":
        with SnapshotMap(path) as m:
            snapmaps.commit(m, shuffled)
    elif how == "spread":
        spread(path, keys).close()
    else:
        SnapshotMap.build(path, dict(itertools.islice(shuffled.items(), 7)))
    with SnapshotMap(path, mode="private" if how == "private" else "readonly") as m:
        if how == "private":
            m.update(shuffled)  # type: ignore[attr-defined]
        order = sorted(keys, key=lambda key: key.encode() if isinstance(key, str) else key)
        assert list(m) == order
        assert list(reversed(m)) == order[::-1]
        assert snapmaps.contents(m) == values
        assert len(m) == len(keys)


def test_the_order_of_str_is_that_of_its_utf8() -> None:
    assert sorted(TEXTS, key=str.encode) == sorted(TEXTS), "code points and UTF-8 agree"
    assert sorted(TEXTS, key=lambda text: text.encode("utf-16-be", "surrogatepass")) != sorted(TEXTS)


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shared", "private"])
@pytest.mark.parametrize("kind", [str, bytes])
def test_keys_have_up_to_65536_bytes(path: str, mode: Any, kind: type) -> None:
    fits, beyond = "k" * LIMIT, "k" * (LIMIT + 1)
    wide = "é" * (LIMIT // 2 + 1)  # few enough characters, too many bytes
    longest: Any = fits.encode() if kind is bytes else fits
    too_long: list[Any] = [beyond.encode(), wide.encode()] if kind is bytes else [beyond, wide]
    SnapshotMap(path).close()
    with SnapshotMap(path, mode=mode) as m:
        for key in too_long:
            changes: list[Callable[[Any], object]] = [
                lambda target, key=key: target.__setitem__(key, 1),
                lambda target, key=key: target.update({key: 1}),
                lambda target, key=key: target.set(key, 1),
                lambda target, key=key: target.setdefault(key, 1),
            ]
            for change in changes:
                with pytest.raises(ValueError, match=r"a key has at most 65,536 bytes, this one has 65,53[78]"):
                    changed(m, longest[:1], change)
            with pytest.raises(ValueError, match="a key has at most 65,536 bytes"):
                SnapshotMap.build(path, {key: 1})
            for lookup in (lambda key: m[key], m.get, m.__contains__, lambda key: m.get_many([key])):
                with pytest.raises(ValueError, match="at most 65,536 bytes"):
                    lookup(key)
            assert list(m.range(key)) == list(m.prefix(key)) == []
        assert (len(m), m.version) == (0, 1)
        if mode == "private":
            m[longest] = 5
        else:
            snapmaps.commit(m, {longest: 5})
        assert (m[longest], list(m), list(m.prefix(longest[:100]))) == (5, [longest], [(longest, 5)])


@pytest.mark.parametrize("mode", ["shared", "private"])
@pytest.mark.parametrize("key", ["\ud800", "a\udfff", "\udc80b", "\ud83d\ude00"], ids=ascii)
def test_lone_surrogates_are_refused(path: str, mode: Any, key: str) -> None:
    SnapshotMap.build(path, {"a": 1})
    with SnapshotMap(path, mode=mode) as m:
        lookups = [
            lambda: m[key], lambda: m.get(key), lambda: key in m, lambda: m.get_many(["a", key]), lambda: m.range(key),
            lambda: m.prefix(key), lambda: m.get_view(key), lambda: m.prefetch([key]),
            lambda: SnapshotMap.build(path, {"b": 1, key: 1}),
        ]  # fmt: skip
        for lookup in lookups:
            with pytest.raises(ValueError, match="surrogates not allowed"):
                lookup()
        with pytest.raises(ValueError, match="surrogates not allowed"):
            changed(m, "b", lambda target: target.__setitem__(key, 1))
        assert (m.version, list(m.items()), len(m)) == (1, [("a", 1)], 1)


def changed(m: Any, first: Any, change: Callable[[Any], object]) -> None:
    """Makes a change here, or in a transaction after another one."""
    if m.mode == "private":
        change(m)
    else:
        with m.transaction() as txn:
            txn[first] = 1
            change(txn)


# ---- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
def test_every_range_in_both_directions(path: str, verify: bool) -> None:
    bounds = [key for key in HARD if len(key) < 100]
    keys = bounds[1::2] + HARD[-3:]  # others are bounds that are no keys
    model = {key: i for i, key in enumerate(keys)}
    with spread(path, keys, verify=verify) as m:
        for low, high in itertools.product([None, *bounds, HARD[-1]], repeat=2):
            for reverse in (False, True):
                assert list(m.range(low, high, reverse)) == expected(model, low, high, reverse), (low, high, reverse)


def test_every_range_of_a_layer_with_a_common_beginning(path: str) -> None:
    keys = [b"common/" + key for key in HARD if len(key) < 100] + [b"common/%04d" % i for i in range(100)]
    model = {key: i for i, key in enumerate(keys)}
    SnapshotMap.build(path, model)
    bounds = [
        None,
        b"",
        b"c",
        b"common",
        b"common.",
        b"common/",
        b"common/0",
        b"common/0031",
        b"common/0031\0",
        b"common0",
    ]
    bounds += [b"common/" + key for key in HARD[1:20:3]] + [b"d", b"\xff"]
    with SnapshotMap(path) as m:
        for low, high in itertools.product(bounds, repeat=2):
            for reverse in (False, True):
                assert list(m.range(low, high, reverse)) == expected(model, low, high, reverse), (low, high, reverse)


def test_every_range_around_each_key_of_groups(path: str) -> None:
    """The guide has an entry for each 16th record: beginnings and ends of groups, whole ones and the last one."""
    for count in (1, 15, 16, 17, 31, 32, 33, 48, 50):
        model: dict[bytes, int] = {b"%03d" % (2 * i): i for i in range(count)}
        SnapshotMap.build(path, model)
        with SnapshotMap(path) as m:
            for i in range(-1, 2 * count + 1):
                bound = b"%03d" % i if i >= 0 else b""
                assert list(m.range(bound)) == expected(model, bound, None), (count, i)
                assert list(m.range(bound, reverse=True)) == expected(model, bound, None, True), (count, i)
                assert list(m.range(None, bound)) == expected(model, None, bound), (count, i)
                assert list(m.range(None, bound, True)) == expected(model, None, bound, True), (count, i)


def test_ranges_of_text(path: str) -> None:
    model = {key.encode(): i for i, key in enumerate(TEXTS)}
    with spread(path, TEXTS) as m:
        for low, high in itertools.product([None, *TEXTS], repeat=2):
            for reverse in (False, True):
                bounds = [None if bound is None else bound.encode() for bound in (low, high)]
                found = [(key.encode(), value) for key, value in m.range(low, high, reverse)]
                assert found == expected(model, *bounds, reverse), (low, high, reverse)


# ---- prefixes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "behind"),
    [(b"", None), (b"a", b"b"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xff", None), (b"\xff\xff\xff", None),
     (b"\xfe\xff", b"\xff"), (b"\0", b"\1"), (b"a\xffb", b"a\xffc"), (b"\xff\xfe", b"\xff\xff")],
)  # fmt: skip
def test_the_first_key_behind_a_prefix(prefix: bytes, behind: bytes | None) -> None:
    assert successor(prefix) == behind


def test_prefixes(path: str) -> None:
    model = {key: i for i, key in enumerate(HARD)}
    prefixes = {key[:size] for key in HARD for size in (0, 1, 2, 3, 8, 9, LIMIT)} | {b"q", b"\xff" * 20, b"a\xff"}
    with spread(path, HARD) as m:
        for prefix in prefixes:
            matching = [(key, model[key]) for key in sorted(HARD) if key.startswith(prefix)]
            assert list(m.prefix(prefix)) == matching, prefix[:20]
            assert list(m.prefix(prefix, reverse=True)) == matching[::-1], prefix[:20]


def test_prefixes_of_text(path: str) -> None:
    with spread(path, TEXTS) as m:
        for prefix in [*TEXTS, "\U0010ffff\U0010ffff", "q"]:
            matching = [(key, TEXTS.index(key)) for key in sorted(TEXTS) if key.startswith(prefix)]
            assert list(m.prefix(prefix)) == matching, ascii(prefix)
            assert list(m.prefix(prefix, True)) == matching[::-1], ascii(prefix)


# ---- over everything, by chance ------------------------------------------------------------------------------------

short = st.binary(max_size=3) | st.sampled_from([b"\xff", b"\xff\xff", b"", b"a\xff"])
batch = st.dictionaries(short, st.none() | st.integers(0, 9), max_size=8)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(batch, st.sampled_from(["commit", "commit", "layer", "compact"])), max_size=6),
    over=batch,
    low=st.none() | short,
    high=st.none() | short,
)
def test_walks_over_layers_delta_and_changes(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, over: Any, low: bytes | None, high: bytes | None
) -> None:
    path = str(tmp_path_factory.mktemp("walks") / "map")
    model: dict[bytes, int] = {}
    with SnapshotMap(path) as m:
        usual = m._files.delta_size
        for changes, how in steps:
            m._files.delta_size = 2 if how == "layer" else usual
            with m.transaction() as txn:
                apply(txn, changes)
                apply(model, changes)
                same(txn, model, low, high)
            if how == "compact":
                m.compact()
            same(m, model, low, high)
        with SnapshotMap(path, mode="private") as private:
            apply(private, over)
            apply(model, over)
            same(private, model, low, high)
    snapmaps.check(path)


def apply(target: Any, changes: dict[bytes, int | None]) -> None:
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


def same(m: Any, model: dict[bytes, int], low: bytes | None, high: bytes | None) -> None:
    assert list(m.items()) == sorted(model.items())
    assert list(reversed(m.keys())) == sorted(model, reverse=True)
    assert len(m) == len(model)
    for reverse in (False, True):
        assert list(m.range(low, high, reverse)) == expected(model, low, high, reverse)


# ---- walks that were begun earlier ---------------------------------------------------------------------------------


def test_a_walk_stays_in_the_version_in_which_it_was_begun(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f"{i:04}": i for i in range(300)}
    SnapshotMap.build(path, dict.fromkeys(before, "old"))
    with SnapshotMap(path) as m, SnapshotMap(path, mode="readonly") as reader:
        snapmaps.tiny(m, monkeypatch)
        snapmaps.commit(m, before)
        walks: list[Any] = []
        for handle in (m, reader):
            walks += [iter(handle.items()), handle.range(), handle.range(reverse=True), handle.prefix("0")]
        begun = [next(walk) for walk in walks[::2]]
        snapmaps.commit(m, {"0001": "changed", "new": 1}, "0002", "0299")
        m.compact()
        snapmaps.commit(m, {}, *list(m))
        m.compact()
        assert (list(m), list(reader), snapmaps.files(path)) == ([], [], [])
        assert begun == [("0000", 0), ("0299", 299)] * 2
        for i, walk in enumerate(walks):
            found = list(walk) if i % 2 else [begun[i // 2], *walk]
            assert dict(found) == before, i
            assert len(found) == 300


def test_views_of_keys_begin_anew_with_each_walk(path: str) -> None:
    with SnapshotMap(path) as m:
        keys, items = m.keys(), m.items()
        assert list(keys) == []
        snapmaps.commit(m, {"a": 1})
        assert (list(keys), list(items), len(keys), "a" in keys) == (["a"], [("a", 1)], 1, True)


@pytest.fixture(params=["private", "transaction"])
def changing(request: pytest.FixtureRequest, path: str) -> Iterator[Any]:
    """A private map and a transaction over "00": 0 to "19": 19."""
    SnapshotMap.build(path, {f"{i:02}": i for i in range(20)})
    with SnapshotMap(path, mode="private" if request.param == "private" else "shared") as m:
        if request.param == "private":
            yield m
        else:
            with m.transaction() as txn:
                yield txn


@pytest.mark.parametrize("before", [{}, {"05": "early"}, {"00": "early", "19": "early", "99": "early"}], ids=len)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_walk_among_changes_comes_to_each_key_once(changing: Any, before: dict[str, Any], reverse: bool) -> None:
    changing.update(before)
    expected = {**{f"{i:02}": i for i in range(20)}, **before}
    walked = []
    for key, value in changing.range(reverse=reverse):
        walked.append(key)
        assert value == expected[key], key
        changing[key] = expected[key] = f"seen {key}"
    assert walked == sorted(expected, reverse=reverse)
    assert dict(changing) == expected
    assert len(changing) == len(expected)


def test_a_walk_among_changes_sees_each_as_it_is_then(changing: Any) -> None:
    changing.update({"03": "early", "07": "early", "11": "early", "99": "early"})
    walk = iter(changing.items())
    assert [next(walk) for _ in range(5)] == [("00", 0), ("01", 1), ("02", 2), ("03", "early"), ("04", 4)]
    changing.update(
        {"02": "late", "02b": "late", "10": "late", "11": "late", "15b": "late", "19": "late", "99b": "late"}
    )
    for key in ("07", "12", "99"):
        del changing[key]
    expected = {f"{i:02}": i for i in range(5, 20) if i not in (7, 12)}
    expected.update(dict.fromkeys(("10", "11", "15b", "19", "99b"), "late"))  # type: ignore[misc]
    assert list(walk) == sorted(expected.items())


def test_a_walk_goes_on_when_changes_are_dropped(changing: Any) -> None:
    changing.update({"03": "early", "07": "early", "11": "early", "99": "early"})
    del changing["12"]
    walk = iter(changing.items())
    assert [next(walk) for _ in range(6)][3:] == [("03", "early"), ("04", 4), ("05", 5)]
    if isinstance(changing, SnapshotMap):
        changing.discard()  # type: ignore[attr-defined]
        assert list(walk) == [(f"{i:02}", i) for i in range(6, 20)]
    else:
        changing.clear()
        assert list(walk) == []
