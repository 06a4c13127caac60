"""What is wrong with a snapshot map: its manifest, the layers and the delta that it names, and what else lies there.

The manifest's three files are a Synchronizer's, and checked as such. Then everything that the newest manifest names is
opened, before anything is read; from there on nobody takes it away. Each layer and the delta are checked by themselves,
and against the manifest. If nothing is wrong with them, their entries are counted, and held against what each commit
and the manifest say. A file that no manifest names is left of somebody who died, unless a writer is at work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mmapds import files
from mmapds._manifest import Contents, DeltaRef, LayerRef
from mmapds.errors import CorruptionError, IncompatibleFormat
from mmapds.inspection import _sync_check
from mmapds.inspection._base import (
    ATTEMPTS,
    SEVERITIES,
    Finding,
    Report,
    check_temporaries,
    first_page,
    opened,
    until_still,
    without_path,
)
from mmapds.inspection._snapshot import (
    MAGIC,
    NAME,
    PREFIX,
    STR,
    SYNC,
    Place,
    Reading,
    decode,
    file_names,
    read_manifest,
    version_of,
)
from mmapds.inspection._snapshot_delta import Delta, check_delta, open_delta
from mmapds.inspection._snapshot_layer import Layer, check_layer, layer_options

_NEVER = "files of the map were replaced again and again, faster than they could be opened: they were not checked"
_OURS = {SYNC, f"{PREFIX}_data_0", f"{PREFIX}_data_1", f"{PREFIX}_data_0.new", f"{PREFIX}_data_1.new"}


def verify(path: str) -> list[Finding]:
    """Everything that is wrong with the snapshot map in a directory."""
    reading = read_manifest(path)
    if reading.data and not reading.data.startswith(MAGIC) and not file_names(path):
        raise IncompatibleFormat(
            f"{path} has a Synchronizer named {PREFIX!r} that publishes something else than a snapshot map does: give "
            f"its prefix, {os.path.join(path, PREFIX)}"
        )
    found = _sync_check.verify(os.path.join(path, PREFIX))
    found += until_still(lambda: _Look(path).run(), SYNC, _NEVER)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def verify_alone(path: str) -> list[Finding]:
    """A layer or a delta without its map."""
    name, report = os.path.basename(path), Report()
    with opened(path) as fd:
        page = first_page(fd)
        header = files.parse_header(page, path)
        if header.kind == "layer":
            check_layer(report, name, fd, path, page, header, bottom=False)
        else:
            _check_delta_alone(report, name, fd, path, page, header)
    report.note(name, "lies apart from its map: nobody can tell whether it is the right one, and all of it")
    return report.findings()


def _check_delta_alone(report: Report, where: str, fd: int, path: str, page: bytes, header: files.Header) -> None:
    """Without a manifest, what counts is what is whole."""
    place, delta = open_delta(report, where, fd, path, page, header)
    if delta is not None:
        whole = [batch for batch in delta.walk(delta.limit) if delta.whole(batch)]
        place.note(f"has {len(whole)} batches that are whole; which of them count, the manifest says")
    place.end()


class _Opened:
    """A file that the manifest names, open."""

    def __init__(self, ref: LayerRef | DeltaRef, name: str, path: str, fd: int) -> None:
        self.ref = ref
        self.name = name
        self.path = path
        self.fd = fd


class _Look:
    """One look at a map: `run` returns what it found, and whether files were removed before they could be opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.report = Report()

    def run(self) -> tuple[Report, bool]:
        report = self.report
        check_temporaries(report, self.path + "/", r"(?:[0-9a-f]{16}\.(?:layer|delta)|run)")
        reading = read_manifest(self.path)
        if reading.data is None:
            self.check_alone(reading)
            return report, False
        if not reading.data:
            report.note(SYNC, "has no version yet: somebody makes the map this moment, or died when he did")
            self.check_strays()
            return report, False
        contents, wrong = decode(reading.data)
        for what in wrong:
            report.error(reading.where, what)
        if contents is None:
            self.check_alone(reading)
            return report, False
        with ExitStack() as stack:
            there = self.open_all(stack, contents, reading)
            if there is None:
                return report, True
            self.check_files(there, contents, reading)
        self.check_strays()
        return report, False

    # -- files

    def open_all(self, stack: ExitStack, contents: Contents, reading: Reading) -> list[_Opened] | None:
        """Those that can be opened; None if the manifest has been replaced meanwhile, and one was removed."""
        there, refs = [], [(ref, "layer") for ref in contents.layers]
        named: list[tuple[LayerRef | DeltaRef, str]] = [*refs]
        if contents.delta is not None:
            named.append((contents.delta, "delta"))
        for ref, kind in named:
            name = f"{ref.number:016x}.{kind}"
            path = os.path.join(self.path, name)
            try:
                there.append(_Opened(ref, name, path, stack.enter_context(opened(path))))
            except FileNotFoundError:
                if not reading.foreign and version_of(self.path)[0] != reading.version:
                    self.report.error(name, "was removed", passing=True)  # so that we look again
                    return None
                self.report.error(name, f"is missing, and the manifest of version {reading.version} names it")
            except (IncompatibleFormat, IsADirectoryError) as error:
                self.report.error(name, without_path(error, path))
        return there

    def check_files(self, there: list[_Opened], contents: Contents, reading: Reading) -> None:
        report = self.report
        layers: list[Layer | None] = []
        delta: tuple[Place, Delta] | None = None
        complete = len(there) == len(contents.layers) + (contents.delta is not None)
        for one in there:
            with self.reported(one.name, one.path):
                page = first_page(one.fd)
                if isinstance(one.ref, LayerRef):
                    header = files.parse_header(page, one.path, "layer")
                    right = self.check_layer_header(one, header, contents, reading)
                    bottom = one.ref is contents.layers[-1]
                    found = check_layer(report, one.name, one.fd, one.path, page, header, bottom=bottom)
                    layers.append(found if right else None)
                else:
                    delta = self.check_delta(one, page, contents, reading)
        whole = [layer for layer in layers if layer is not None]
        complete = complete and len(whole) == len(contents.layers) and (contents.delta is None) == (delta is None)
        if complete:
            _count(report, whole, delta, contents, reading)

    @contextmanager
    def reported(self, name: str, path: str) -> Iterator[None]:
        try:
            yield
        except (CorruptionError, IncompatibleFormat) as error:
            self.report.error(name, without_path(error, path))

    def check_header(self, one: _Opened, header: files.Header, reading: Reading) -> bool:
        """What the manifest says of it, and what all files of a map have in common."""
        report, owner = self.report, reading.header
        right = True
        if header.identity != one.ref.identity:
            report.error(
                one.name, f"is not the file that the manifest names, {one.ref.identity.hex()}: was it replaced?"
            )
            right = False
        if header.options[0] != one.ref.number:
            report.error(one.name, f"says that it is number {header.options[0]:x}")
            right = False
        if owner is not None and header.parent != owner.identity:
            report.error(one.name, "belongs to another map")
            right = False
        if owner is not None and header.durability != owner.durability:
            report.warning(one.name, f"has durability {header.durability!r}, and the map {owner.durability!r}")
        return right

    def check_layer_header(self, one: _Opened, header: files.Header, contents: Contents, reading: Reading) -> bool:
        right = self.check_header(one, header, reading)
        options, ref = layer_options(header), one.ref
        assert isinstance(ref, LayerRef)
        if (options["records"], options["size"]) != (ref.records, ref.bytes):
            self.report.error(
                one.name,
                f"says {options['records']} records and {options['size']} bytes, and the manifest {ref.records} and "
                f"{ref.bytes}",
            )
            right = False
        if options["keys"] != contents.keys and options["records"]:
            self.report.error(
                one.name, f"says {options['keys']} for the kind of its keys, the manifest {contents.keys}"
            )
            right = False
        return right

    def check_delta(
        self, one: _Opened, page: bytes, contents: Contents, reading: Reading
    ) -> tuple[Place, Delta] | None:
        ref = contents.delta
        assert ref is not None
        header = files.parse_header(page, one.path, "delta")
        right = self.check_header(one, header, reading)
        place, delta = open_delta(self.report, one.name, one.fd, one.path, page, header)
        if delta is not None:
            ours = _same_origin(one.fd, header)
            if not ours and not reading.foreign:
                place.note(
                    "was last written on another boot, or is a copy: its links are not used, and the next writer "
                    "makes a layer of it"
                )
            if contents.layers and contents.layers[0].entries != delta.entries:
                place.error(
                    f"says that it began with {delta.entries} entries, and the manifest that there were "
                    f"{contents.layers[0].entries}"
                )
            right = check_delta(place, delta, ref.end, reading.version, contents.keys == STR, ours) and right
            if right and ours:
                self.check_unpublished(place, delta, ref.end, reading)
        place.end()
        return (place, delta) if right and delta is not None else None

    def check_unpublished(self, place: Place, delta: Delta, end: int, reading: Reading) -> None:
        """A writer holds his place from before a batch until after its manifest."""
        written = delta.written
        if written > end:
            version, writing = version_of(self.path)
            if not writing and version_of(self.path)[0] == version == reading.version:
                place.note(
                    f"has {written - end} bytes of batches that were not published: a writer died, or was interrupted, "
                    "before his manifest. Nobody reads them; the next writer makes a layer of what counts"
                )

    # -- without a manifest, and what is left

    def check_alone(self, reading: Reading) -> None:
        """All layers and deltas that are there, by themselves."""
        names = file_names(self.path)
        for name in names:
            path = os.path.join(self.path, name)
            try:
                with self.reported(name, path), opened(path) as fd:
                    page = first_page(fd)
                    header = files.parse_header(page, path, NAME.sub(r"\2", name))
                    if reading.header is not None and header.parent != reading.header.identity:
                        self.report.error(name, "belongs to another map")
                    if header.kind == "layer":
                        check_layer(self.report, name, fd, path, page, header, bottom=False)
                    else:
                        _check_delta_alone(self.report, name, fd, path, page, header)
            except FileNotFoundError:
                continue
            except IsADirectoryError as error:
                self.report.error(name, without_path(error, path))
        if names:
            self.report.note(SYNC, "gives no manifest: layers and delta were checked by themselves")

    def check_strays(self) -> None:
        """Files that no manifest names. Said only if no writer was at work while we looked."""
        names: list[str] = []
        for _ in range(ATTEMPTS):
            now = read_manifest(self.path)
            contents = decode(now.data)[0] if now.data else None
            if now.data is None or (now.data and contents is None):
                return  # damaged meanwhile
            try:
                names = sorted(os.listdir(self.path))
            except PermissionError:
                return
            version, writing = version_of(self.path)
            if writing:
                return
            if version == now.version or now.foreign:
                break
        else:
            return
        wanted = set() if contents is None else {f"{layer.number:016x}.layer" for layer in contents.layers}
        if contents is not None and contents.delta is not None:
            wanted.add(f"{contents.delta.number:016x}.delta")
        strange = 0
        for name in names:
            if name in wanted or name in _OURS or name.startswith("."):
                continue
            if NAME.fullmatch(name):
                self.report.note(
                    name, "is not named by the manifest: left by a writer that died; the next one removes it"
                )
            elif name != f"{PREFIX}_state" and strange < 8:  # that one has a finding already
                strange += 1
                self.report.note(name, "is no file of a snapshot map")


def _same_origin(fd: int, header: files.Header) -> bool:
    status = os.fstat(fd)
    return (header.boot_id, header.device, header.inode) == (files.boot_id(), status.st_dev, status.st_ino)


# ---- how many entries ----------------------------------------------------------------------------------------------


def _alive_below(layers: list[Layer], key: bytes) -> bool:
    """Whether the newest of these layers that has the key has an entry for it."""
    for layer in layers:
        found = layer.find(key)
        if found is not None:
            return found
    return False


def _count(
    report: Report, layers: list[Layer], delta: tuple[Place, Delta] | None, contents: Contents, reading: Reading
) -> None:
    """From the oldest layer to the newest commit: each record adds an entry, or takes one away, or neither. An entry
    that has expired counts."""
    entries = layers[-1].alive if layers else 0
    for at in range(len(layers) - 2, -1, -1):
        for key, gone in layers[at].walk():
            entries += (not gone) - _alive_below(layers[at + 1 :], key)
    if delta is not None:
        place, found = delta
        latest: dict[bytes, bool] = {}
        if found.entries != entries:
            place.error(f"says that the map had {found.entries} entries when it was made, and {entries} are counted")
        for batch in found.batches:
            for key, gone in found.records(batch):
                before = latest.get(key)
                entries += (not gone) - (_alive_below(layers, key) if before is None else before)
                latest[key] = not gone
            if batch.entries != entries:
                place.error(
                    f"the batch at byte {batch.start} says that the map of version {batch.version} had {batch.entries} "
                    f"entries, and {entries} are counted"
                )
                place.end()
                break
    if entries != contents.entries and not (delta is not None and delta[1].cut):
        report.error(reading.where, f"says that there are {contents.entries} entries, and {entries} are counted")
