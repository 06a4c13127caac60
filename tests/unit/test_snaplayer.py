"""The native half of a snapshot map: what layers, deltas, cursors and versions refuse, before any of it is used."""

from __future__ import annotations

import contextlib
import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
import snapmaps
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Peer

from mmapds import CorruptionError, SnapshotMap, codecs, files
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.snapbuild import Changes, append, buckets_for
from mmapds._native.snapcursor import ITEMS, KEYS, Cursor, Entries, Run, Values
from mmapds._native.snaplayer import STR_KEYS, Delta, Layer, State
from mmapds._native.snapmap import MapCore

NAMES = [
    "number", "records", "end", "metadata", "guide", "guides", "common", "table", "buckets", "probes", "sums", "size",
    "keys", "hash of sums",
]  # fmt: skip
COUNT = 100
LENGTHY = 10_000  # a file of this size has no more records
VALUES = Values(codecs.resolve("msgpack"))
EDGES = [0, 1, 7, 8, 63, 64, 4095, 4096, 4104, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1]
EDGES += [1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 1]


class Parts:
    """A layer and a delta, as files: what their headers say, and mappings of them."""

    def __init__(self, path: str) -> None:
        SnapshotMap.build(path, ((f"{i:04}", i) for i in range(COUNT)), metadata="metadata")
        with SnapshotMap(path) as m, pytest.MonkeyPatch.context() as patch:
            snapmaps.tiny(m, patch)
            for i in range(3):
                snapmaps.commit(m, {f"{i:04}": "new", f"more {i}": i})
            self.end = m._state.end
            self.layer_file = m._state.layers[0].path
            self.delta_file = m._state.delta.path if m._state.delta is not None else ""

    @staticmethod
    def open(path: str, kind: str) -> tuple[Mapping, bytes, tuple[int, ...]]:
        opened = files.OpenFile(path, kind, writable=False)
        try:
            mapping = Mapping(opened.fd, opened.size, FLAGS["READ"], FLAGS["SHARED"], path)
            return mapping, opened.header.identity, tuple(opened.header.options)
        finally:
            opened.close()

    def layer(self, verify: bool = False, **changes: int) -> Layer:
        mapping, identity, options = self.open(self.layer_file, "layer")
        return Layer(mapping, options[0], identity, changed(options, NAMES, changes), verify)

    def delta(self, own: bool = False, **changes: int) -> Delta:
        mapping, identity, options = self.open(self.delta_file, "delta")
        return Delta(mapping, options[0], identity, changed(options, ["number", "size", "buckets"], changes), own)

    def options(self, path: str, kind: str) -> tuple[int, ...]:
        return self.open(path, kind)[2]


def changed(options: tuple[int, ...], names: list[str], changes: dict[str, int]) -> tuple[int, ...]:
    return tuple(changes.get(name, value) for name, value in zip([*names, *[""] * 32], options, strict=False))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(str(tmp_path_factory.mktemp("native") / "map"))


def state(parts: Parts, layer: Layer | None = None, delta: Delta | None = None, end: int | None = None) -> State:
    layers = () if layer is None else (layer,)
    return State(5, COUNT, STR_KEYS, layers, delta, (parts.end if end is None else end) if delta else 0, 0)


def use(view: State) -> None:
    """Reads all of it in each way: whatever the file says, it raises nothing but CorruptionError."""
    core = MapCore()
    core._use(VALUES)
    core._go_by(view)
    core._follow(None)
    for key in ("0000", "0050", "0099", "none", ""):
        with contextlib.suppress(CorruptionError):
            core.get(key)
    for backward in (False, True):
        for first, bound in ((None, None), (b"0050", None), (None, b"0050"), (b"0020", b"0080")):
            with contextlib.suppress(CorruptionError):
                entries = Entries(view, ITEMS, VALUES)
                entries.range(first, bound, backward)
                for n in itertools.count():
                    assert n < LENGTHY, "it does not come to an end"
                    try:
                        next(entries)
                    except StopIteration:
                        break
                    except CorruptionError:
                        if n % 3 == 2:
                            raise
    for layer in view.layers:
        with contextlib.suppress(CorruptionError):
            layer.metadata  # noqa: B018
        found: list[str] = []
        layer.verify(found)
        for start, stop in ((None, None), (b"0050", None), (b"0010", b"0020")):
            with contextlib.suppress(CorruptionError):
                layer.populate(start, stop, start is None)


def walk(view: State) -> list[Any]:
    return list(Entries(view, KEYS, VALUES))


# ---- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
def test_a_layer_that_is_right(parts: Parts, verify: bool) -> None:
    layer = parts.layer(verify)
    assert (layer.records, layer.blocks, layer.verify(), layer.metadata) == (COUNT, 1, 1, b"\xa8metadata")
    assert layer.size == Path(layer.path).stat().st_size
    assert walk(state(parts, layer)) == [f"{i:04}" for i in range(COUNT)]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", NAMES[1:12])
def test_offsets_that_do_not_fit_are_refused_or_harmless(parts: Parts, name: str, verify: bool) -> None:
    right = dict(zip(NAMES, parts.options(parts.layer_file, "layer"), strict=False))
    size = Path(parts.layer_file).stat().st_size
    near = [right[name] + step for step in (-64, -16, -8, -1, 1, 8, 16, 64) if right[name] + step >= 0]
    accepted: list[int] = []
    refused: list[str] = []
    for value in {*EDGES, *near, size, size - 8, size + 1} - {right[name]}:
        try:
            layer = parts.layer(verify, **{name: value})
        except CorruptionError as error:
            refused.append(str(error))
        else:
            accepted.append(value)
            use(state(parts, layer))
    assert all(parts.layer_file in told and "restore a copy" in told for told in refused), refused
    harmless = {"records", "end", "metadata", "guide", "common", "probes"}  # near the right value
    assert not accepted or name in harmless, (name, accepted)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(NAMES[1:12]), st.sampled_from(EDGES) | st.integers(0, 20_000) | st.integers(0, (1 << 64) - 1)
    ),
    verify=st.booleans(),
)
def test_whatever_a_header_says(parts: Parts, changes: dict[str, int], verify: bool) -> None:
    try:
        layer = parts.layer(verify, **changes)
    except CorruptionError:
        return
    use(state(parts, layer))


def test_sums_that_are_damaged_are_found_at_once(parts: Parts) -> None:
    wrong = {"hash of sums": 5}
    with pytest.raises(CorruptionError, match="the checksums of its blocks"):
        parts.layer(True, **wrong)
    layer = parts.layer(False, **wrong)
    assert walk(state(parts, layer))[0] == "0000", "nobody asked"
    with pytest.raises(CorruptionError, match="the checksums of its blocks"):
        layer.verify()
    found: list[str] = []
    layer.verify(found)
    assert len(found) == 1


def test_options_that_are_too_few_or_of_another_kind(parts: Parts) -> None:
    mapping, identity, options = parts.open(parts.layer_file, "layer")
    for wrong in (options[:5], (), (-1,) * 14, (1 << 64,) * 14, ("x",) * 14):
        with pytest.raises((ValueError, TypeError, OverflowError)):
            Layer(mapping, 1, identity, wrong, False)
    for wrong in ((None, identity), (mapping, None)):
        with pytest.raises(TypeError):
            Layer(wrong[0], 1, wrong[1], options, False)  # type: ignore[arg-type]


# ---- the delta -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_a_delta_that_is_right(parts: Parts, own: bool) -> None:
    delta = parts.delta(own)
    assert delta.written == parts.end
    assert delta.start < parts.end < delta.limit == delta.size - 8
    batches = list(delta.batches(parts.end))
    assert [(count, version) for _, _, count, version, _ in batches] == [(2, 2), (2, 3), (2, 4)]
    assert (batches[0][0], batches[-1][1]) == (delta.start, parts.end)
    assert walk(state(parts, None, delta)) == ["0000", "0001", "0002", "more 0", "more 1", "more 2"]
    middle = batches[0][1]
    assert walk(state(parts, None, parts.delta(own), middle)) == ["0000", "more 0"], "what lies behind is not there"


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["size", "buckets"])
def test_sizes_that_do_not_fit_are_refused_or_harmless(parts: Parts, name: str, own: bool) -> None:
    told: list[str] = []
    accepted: list[int] = []
    right = dict(zip(["number", "size", "buckets"], parts.options(parts.delta_file, "delta"), strict=False))
    near = [right[name] + step for step in (-16, -1, 1, 16) if right[name] + step >= 0]
    for value in {*EDGES, *near} - {right[name]}:
        try:
            delta = parts.delta(own, **{name: value})
            view = state(parts, None, delta)
        except CorruptionError as error:
            told.append(str(error))
        else:
            accepted.append(value)
            use(view)
    assert all(parts.delta_file in one for one in told), told
    assert not accepted or name == "buckets", accepted


@pytest.mark.parametrize("own", [False, True])
def test_an_end_that_is_none_is_refused(parts: Parts, own: bool) -> None:
    delta = parts.delta(own)
    for end in (0, delta.start - 8, parts.end + 1, parts.end - 1, delta.limit + 8, 1 << 63, (1 << 64) - 8):
        with pytest.raises(CorruptionError, match="the manifest says that"):
            state(parts, None, parts.delta(own), end)
    inside = list(delta.batches(parts.end))[1][0] + 64
    for end in (inside, parts.end + 64):
        if own:
            with pytest.raises(CorruptionError, match=r"the batch at byte \d+ is damaged"):
                state(parts, None, parts.delta(own), end)
        else:
            view = state(parts, None, parts.delta(own), end)
            use(view)
            with pytest.raises(CorruptionError, match="is damaged"):
                walk(view)
        with pytest.raises(CorruptionError, match="is damaged"):
            list(delta.batches(end))


def test_only_a_delta_that_is_ours_and_has_room_is_appended_to(parts: Parts) -> None:
    changes = Changes(state(parts, None, parts.delta()), {"a": (b"\1", 0)})
    assert (len(changes), changes.gained, changes.keys) == (1, 1, STR_KEYS)
    for own in (False, True):
        with pytest.raises(RuntimeError, match="cannot take the batch"):
            append(parts.delta(own), changes, parts.end, 5, 1)


# ---- versions and cursors ------------------------------------------------------------------------------------------


def test_a_version_has_a_limited_number_of_layers(parts: Parts) -> None:
    layer = parts.layer()
    State(1, 0, STR_KEYS, (layer,) * 12, None, 0, 0)
    for count in (13, 14, 1000):
        with pytest.raises(CorruptionError, match=f"names {count} layers"):
            State(1, 0, STR_KEYS, (layer,) * count, None, 0, 0)
    with pytest.raises(TypeError):
        State(1, 0, STR_KEYS, ("layer",), None, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        State(1, 0, STR_KEYS, None, None, 0, 0)  # type: ignore[arg-type]


def test_the_newest_of_equal_keys_counts(parts: Parts) -> None:
    view = State(1, 0, STR_KEYS, (parts.layer(),) * 12, parts.delta(), parts.end, 0)
    found = dict(Entries(view, ITEMS, VALUES))
    assert list(found) == sorted({*(f"{i:04}" for i in range(COUNT)), "more 0", "more 1", "more 2"})
    assert [found[f"{i:04}"] for i in range(5)] == ["new", "new", "new", 3, 4]


def test_cursors_take_what_they_say(parts: Parts) -> None:
    cursor: Any = Cursor()
    for wrong in (None, "layer", 5):
        with pytest.raises(TypeError):
            cursor.add(wrong)
        with pytest.raises(TypeError):
            cursor.add_run(wrong)
        with pytest.raises(TypeError):
            cursor.add_delta(wrong, 0)
    for wrong in ("text", 5):
        with pytest.raises(TypeError):
            cursor.range(wrong, None, False)
    with pytest.raises(TypeError):
        Entries(None, KEYS, VALUES)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        VALUES(None)  # type: ignore[arg-type]
    assert walk(State(1, 0, STR_KEYS, (), None, 0, 0)) == []


def test_runs_end_within_their_file(parts: Parts) -> None:
    mapping = parts.open(parts.layer_file, "layer")[0]
    for end in (0, 4095, memoryview(mapping).nbytes + 1, (1 << 64) - 1):
        with pytest.raises(ValueError, match="cannot end"):
            Run(mapping, end)
    Run(mapping, 4096)


def test_a_handle_without_a_version_says_so() -> None:
    core = MapCore()
    for call in (lambda: core.get("a"), lambda: core["a"], lambda: "a" in core, lambda: core.get_many(["a"])):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize("records", [0, 1, 5, 6, 100, 10**9])
def test_tables_have_room(records: int) -> None:
    assert 8 * buckets_for(records) > records / 0.8


# ---- bytes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(parts: Parts) -> tuple[bytes, bytes]:
    return Path(parts.layer_file).read_bytes(), Path(parts.delta_file).read_bytes()


def anonymous(data: bytes) -> Mapping:
    flags = FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"]
    mapping = Mapping(-1, len(data), FLAGS["READ"] | FLAGS["WRITE"], flags, "bytes")
    memoryview(mapping)[:] = data
    return mapping


words = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)


@settings(max_examples=200, deadline=None)
@given(pokes=st.lists(st.tuples(st.floats(0, 1), words), min_size=1, max_size=5), own=st.booleans())
def test_whatever_the_records_say(
    parts: Parts, images: tuple[bytes, bytes], pokes: list[tuple[float, int]], own: bool
) -> None:
    """Damaged words anywhere in a layer or what counts of a delta: values may be wrong, nothing is read elsewhere."""
    layer, delta = map(bytearray, images)
    options = parts.options(parts.layer_file, "layer")
    for where, word in pokes:
        struct.pack_into("<Q", layer, 4096 + int(where * (len(layer) - 4096 - 16)) // 8 * 8, word)
        for low, high in ((8192, 8192 + 4 * 8), (parts.delta().start, parts.end)):
            struct.pack_into("<Q", delta, low + int(where * (high - low - 8)) // 8 * 8, word)
    _, identity, _ = parts.open(parts.layer_file, "layer")
    _, delta_identity, delta_options = parts.open(parts.delta_file, "delta")
    one = Layer(anonymous(bytes(layer)), 1, identity, options, False)
    use(State(5, COUNT, STR_KEYS, (one,), None, 0, 0))
    two = Delta(anonymous(bytes(delta)), 2, delta_identity, delta_options, own)
    try:
        view = State(5, COUNT, STR_KEYS, (one,), two, parts.end, 0)
    except CorruptionError:
        return
    use(view)


def test_a_block_that_is_damaged_gives_no_value_when_verified(parts: Parts, images: tuple[bytes, bytes]) -> None:
    options = parts.options(parts.layer_file, "layer")
    _, identity, _ = parts.open(parts.layer_file, "layer")
    for offset in range(4096, options[10], 97):
        data = bytearray(images[0])
        data[offset] ^= 16
        layer = Layer(anonymous(bytes(data)), 1, identity, options, True)
        view = State(5, COUNT, STR_KEYS, (layer,), None, 0, 0)
        with pytest.raises(CorruptionError, match="block 0"):
            walk(view)
        with pytest.raises(CorruptionError, match="block 0"):
            layer.verify()


GUIDES = """
import itertools, struct, xxhash
from mmapds import CorruptionError, files
from mmapds._native.region import FLAGS, Mapping
from mmapds._native.snapcursor import ITEMS, Entries
from mmapds._native.snaplayer import STR_KEYS, Layer, State
from mmapds._native.snapcursor import Values
from mmapds.codecs import resolve

opened = files.OpenFile(path, "layer", writable=False)
identity, right = opened.header.identity, opened.header.options
opened.close()
with open(path, "rb") as file:
    image = file.read()
guide, guides, sums, size = right[4], right[5], right[10], right[11]

def attempt(call):
    try:
        return [call()]
    except CorruptionError:
        return []

def use(offset, verify):
    data, options = bytearray(image), list(right)
    for i in range(guides):
        struct.pack_into("<Q", data, guide + 16 * i + 8, offset)
    if verify:      # as somebody would who wants to be believed
        for i, at in enumerate(range(4096, sums, 65536)):
            struct.pack_into("<Q", data, sums + 8 * i, xxhash.xxh3_64_intdigest(data[at : min(at + 65536, sums)]))
        options[13] = xxhash.xxh3_64_intdigest(data[sums : size - 8])
    mapping = Mapping(-1, size, FLAGS["READ"] | FLAGS["WRITE"], FLAGS["PRIVATE"] | FLAGS["ANONYMOUS"], "bytes")
    memoryview(mapping)[:] = data
    layer = Layer(mapping, 1, identity, tuple(options), verify)
    state = State(5, 0, STR_KEYS, (layer,), None, 0, 0)
    for backward in (False, True):
        for first, bound in ((None, None), (b"0050", None), (None, b"0050"), (b"0020", b"0080"), (b"0016", None)):
            entries = Entries(state, ITEMS, Values(resolve("msgpack")))
            entries.range(first, bound, backward)
            attempt(lambda: list(itertools.islice(entries, 10_000)))
    for first, bound in ((b"0050", None), (None, b"0050"), (b"0010", b"0020")):
        attempt(lambda: layer.populate(first, bound, False))
"""


@pytest.mark.parametrize("verify", [False, True])
def test_a_guide_that_leads_nowhere(parts: Parts, verify: bool) -> None:
    """In a process of its own: what is read elsewhere may be its end."""
    with Peer(GUIDES, path=parts.layer_file) as peer:
        size = Path(parts.layer_file).stat().st_size
        for offset in [*EDGES, size - 8, size, size + 4096, 1 << 40, (1 << 47) - 4096]:
            peer("use(offset, verify)", offset=offset, verify=verify)


def test_a_damaged_block_of_a_large_value_is_never_handed_out(tmp_path: Path) -> None:
    path = str(tmp_path / "map")
    values = {f"{i}": bytes([i]) * 200_000 for i in range(5)}
    SnapshotMap.build(path, values, codec="raw")
    with SnapshotMap(path) as m:
        file = m._state.layers[0].path
    options = Parts.open(file, "layer")[2]
    identity = Parts.open(file, "layer")[1]
    image = Path(file).read_bytes()
    raw = Values(codecs.resolve("raw"))
    for offset in range(4096 + 30_000, options[2], 65536):
        data = bytearray(image)
        data[offset] ^= 1
        for backward in (False, True):
            layer = Layer(anonymous(bytes(data)), 1, identity, options, True)
            entries = Entries(State(1, 5, STR_KEYS, (layer, layer), None, 0, 0), ITEMS, raw)
            entries.range(None, None, backward)
            found = []
            with pytest.raises(CorruptionError, match=f"block {(offset - 4096) // 65536} "):
                found.extend(entries)
            assert all(values[key] == value for key, value in found), offset
            core = MapCore()
            core._use(raw)
            layer = Layer(anonymous(bytes(data)), 1, identity, options, True)
            core._go_by(State(1, 5, STR_KEYS, (layer,), None, 0, 0))
            core._follow(None)
            refused = 0
            for key, value in values.items():
                try:
                    assert core[key] == value, (offset, key)
                except CorruptionError:
                    refused += 1
            assert 1 <= refused <= 2, (offset, refused)
