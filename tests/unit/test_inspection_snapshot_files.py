"""`verify` of snapshot maps whose manifest is made to mislead, or whose files are not what they should be."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapdamage as raw
import syncfiles as sync
from findings import errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapdamage import PAGE, Shared, says

from mmapds import CorruptionError
from mmapds.errors import IncompatibleFormat
from mmapds.inspection import Finding, describe, verify

fast = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    path = str(tmp_path_factory.mktemp("damaged") / "cities")
    with pytest.MonkeyPatch.context() as monkeypatch:
        raw.fill(path, monkeypatch)
    return Shared(path)


@pytest.fixture
def shared(made: Shared) -> Iterator[Shared]:
    yield made
    made.mend()
    assert verify(made.path) == []


# ---- the manifest, on purpose --------------------------------------------------------------------------------------


def manifest_with(shared: Shared, content: bytes) -> list[Finding]:
    raw.publish(shared.path, content)
    return shared.found()


MANIFESTS = [
    (0, 5, "is no manifest"),
    (raw.MANIFEST_NUMBER, 2, "the next new one's number is 2"),
    (raw.ENTRIES, 5, "says that there are 5 entries, and "),
    (raw.KIND, 7, "says 7 for the kind of its keys"),
    (raw.LAYERS, 2, "names 2 layers in"),
    (raw.LAYERS, 1 << 60, "layers in"),
    (raw.LAYER, 1, "is not from new to old"),
    (raw.LAYER, 0, "names file 0000000000000000"),
    (raw.DELTA, 0, "has words that must be 0"),
    (raw.DELTA, 1 << 60, "names file 1000000000000000"),
]


@pytest.mark.parametrize(("at", "number", "what"), MANIFESTS)
def test_r16_words_of_the_manifest(at, number, what, shared):
    found = manifest_with(shared, raw.with_word(raw.value(shared.path), at, number))
    says(found, "error", f"manifest_data_{sync.sequence(raw.manifest(shared.path)) & 1}", what)


@fast
@given(data=st.data())
def test_r16_any_manifest(data, shared):
    content = raw.value(shared.path)
    at = 8 * data.draw(st.integers(0, len(content) // 8 - 1))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, 700)))
    changed = raw.with_word(content, at, data.draw(st.integers(0, (1 << 64) - 1))).ljust(cut, b"\0")[:cut]
    try:
        found = manifest_with(shared, changed)
    finally:
        shared.mend()
    number = struct.unpack_from("<Q", changed, raw.MANIFEST_NUMBER)[0] if cut == len(content) else 0
    if changed == content or (
        cut == len(content)
        and (
            32 <= at < 56
            or (at > raw.LAYER + 40 and (at - raw.LAYER) % 48 == 40)
            or (at == raw.MANIFEST_NUMBER and number > 6)
        )
    ):
        assert found == []  # the clock may say anything, and numbers may be left out
    elif changed:
        assert "error" in {f.severity for f in found}, found


def test_r16_what_the_manifest_says_of_the_files(shared):
    content = raw.value(shared.path)
    layer = shared.layers[0]
    for at, where, what in (
        (raw.LAYER + 8, layer, "is not the file that the manifest names"),
        (raw.LAYER + 24, layer, "records and"),
        (raw.LAYER + 32, layer, "bytes, and the manifest"),
        (raw.DELTA + 8, shared.delta, "is not the file that the manifest names"),
        (raw.DELTA_END, shared.delta, "the manifest counts up to 1234"),
    ):
        says(manifest_with(shared, raw.with_word(content, at, 1234)), "error", where, what)
        shared.mend()
    found = manifest_with(shared, raw.with_word(content, raw.DELTA_END, shared.batches[-1].at))
    says(found, "error", "manifest_data_0" if "manifest_data_0" in str(found) else "manifest_data_1", "entries, and")
    shared.mend()
    found = manifest_with(shared, raw.with_word(content, raw.LAYER + 40, 1))
    says(found, "error", shared.delta, "and the manifest that there were 1")
    shared.mend()
    found = manifest_with(shared, raw.with_word(content, raw.KIND, 2))
    says(found, "error", layer, "says 1 for the kind of its keys")
    shared.mend()
    (Path(shared.path) / "0000000000000abc.layer").write_bytes(Path(layer).read_bytes())
    number = raw.with_word(raw.with_word(content, raw.LAYER, 0xABC), raw.MANIFEST_NUMBER, 0xFFF)
    says(manifest_with(shared, number), "error", "0000000000000abc.layer", "says that it is number")


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["layer", "delta"])
@pytest.mark.parametrize(
    "how", ["removed", "cut", "longer", "empty", "nonsense", "other map", "link", "fifo", "folder"]
)
def test_r17_files_that_are_not_what_they_should_be(how, which, tmp_path, monkeypatch):
    path = str(tmp_path / "cities")
    raw.fill(path, monkeypatch)
    layers, delta = raw.named(path)
    file = layers[0] if which == "layer" else delta
    assert file is not None
    data = Path(file).read_bytes()
    os.rename(file, tmp_path / "kept")
    if how in ("cut", "longer", "empty", "nonsense"):
        Path(file).write_bytes(
            {"cut": data[:9000], "longer": data + bytes(4096), "empty": b""}.get(how, b"nonsense" * 900)
        )
    elif how == "other map":
        raw.fill(str(tmp_path / "other"), monkeypatch)
        found = raw.named(str(tmp_path / "other"))
        Path(file).write_bytes(Path(found[0][0] if which == "layer" else found[1] or "").read_bytes())
    elif how == "link":
        os.symlink(tmp_path / "kept", file)
    elif how == "fifo":
        os.mkfifo(file)
    elif how == "folder":
        os.mkdir(file)
    found = errors(path)
    assert {f.where for f in found} == {os.path.basename(file)}, found
    describe(path)
    if how not in ("removed", "link", "fifo", "folder"):
        assert errors(file) == found


@pytest.mark.parametrize("how", ["removed", "cut", "empty", "nonsense"])
def test_r17_a_control_file_that_is_not_one(how, tmp_path, monkeypatch):
    """Layers are looked at all the same."""
    path = str(tmp_path / "cities")
    raw.fill(path, monkeypatch)
    layer = raw.named(path)[0][-1]
    file = os.path.join(path, "manifest_sync")
    data = Path(file).read_bytes()
    os.unlink(file)
    if how != "removed":
        Path(file).write_bytes({"cut": data[:5000], "empty": b"", "nonsense": b"nonsense" * 900}[how])
    sync.flip(layer, 8 * PAGE + 500)
    found = verify(path)
    says(found, "error", "manifest_sync", "")
    says(found, "error", layer, "block 0")
    if how == "cut":
        assert "cut" in describe(path)
    else:
        with pytest.raises((CorruptionError, IncompatibleFormat, FileNotFoundError)):
            describe(path)


@fast
@given(data=st.binary(max_size=600), head=st.sampled_from([96, 2048, PAGE]))
def test_r16_any_bytes(data, head, shared):
    """Under right checksums, as far as there can be any."""
    layer, delta = shared.layers[0], shared.delta
    for file in (layer, delta):
        sync.poke(file, head, data)
        sync.seal(file)
    try:
        found = shared.found()
        if head == PAGE:
            raw.seal_layer(layer)
            found += shared.found()
    finally:
        shared.mend()
    assert {f.where for f in found} <= {os.path.basename(layer), os.path.basename(delta)}, found
