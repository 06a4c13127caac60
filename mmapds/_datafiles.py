"""The two data files of a Synchronizer: found, checked, mapped, grown, replaced.

A file that readers may hold is never made smaller and never changed in place while it is held; the writer's half
decides when, this module does it. Files of the default protocol start with a header page that names the sync file they
belong to; those of mmap-sync start with the data.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from mmapds import files
from mmapds._native import kernel
from mmapds._native.region import FLAGS, Mapping
from mmapds.errors import CorruptionError, IncompatibleFormat

_READ = FLAGS["READ"]
_WRITE = FLAGS["READ"] | FLAGS["WRITE"]


class CrateDataFiles:
    """``<prefix>_data_0`` and ``_1`` as the crate mmap-sync makes them: 0640, as large as their largest value."""

    start = 0  # where the value begins
    end = 0  # bytes behind its room
    permissions = 0o640

    def __init__(self, prefix: str, *, populate: bool) -> None:
        self._prefix = prefix
        self._durability = "process"
        self._flags = FLAGS["SHARED"] | (FLAGS["POPULATE"] if populate else 0)

    def path(self, index: int) -> str:
        return f"{self._prefix}_data_{index}"

    def open(self, index: int, *, writable: bool) -> int:
        """A descriptor of a data file that is ours."""
        return files.open_regular(self.path(index), writable=writable)

    def map(self, index: int, size: int) -> Mapping | None:
        """The file as readers map it; None if it is missing, or too short for `size`."""
        try:
            fd = self.open(index, writable=False)
        except FileNotFoundError:
            return None
        try:
            length = min(os.fstat(fd).st_size, 2 * kernel.LIMIT)  # what is larger is not ours
            if self.end:
                length -= length % kernel.PAGE  # nor is a part of a page
            if length < self.start + max(size, 1) + self.end:
                return None
            return Mapping(fd, length, _READ, self._flags, self.path(index))
        finally:
            os.close(fd)

    def target(self, index: int, size: int, renew: bool) -> Mapping:  # noqa: ARG002 (these inodes stay)
        """The file as the writer maps it, with room for `size`."""
        try:
            fd = self.open(index, writable=True)
        except FileNotFoundError:
            with files.unnamed(self.path(index), self.permissions) as (created, publish):
                kernel.allocate(created, max(size, 1))
                publish()
            fd = self.open(index, writable=True)
        return self._map_target(fd, index, max(size, 1))

    def _map_target(self, fd: int, index: int, length: int) -> Mapping:
        try:
            kernel.allocate(fd, length)
            length = min(os.fstat(fd).st_size, 2 * kernel.LIMIT)
            if self.end:
                os.pwrite(fd, kernel.SENTINEL.to_bytes(self.end, "little"), length - self.end)
            mapping = Mapping(fd, length, _WRITE, self._flags, self.path(index))
            if self._durability == "power":
                mapping.keep(fd)
            return mapping
        finally:
            os.close(fd)


class DataFiles(CrateDataFiles):
    """The same with a header page, 0600, in whole pages, and with inodes that can be replaced."""

    start = kernel.PAGE
    end = 8  # the sentinel

    def __init__(self, prefix: str, control: files.OpenFile, *, populate: bool) -> None:
        super().__init__(prefix, populate=populate)
        self._control = control
        self._durability = control.header.durability

    def open(self, index: int, *, writable: bool) -> int:
        path = self.path(index)
        try:
            fd = files.open_regular(path, writable=writable)
        except FileNotFoundError:
            self._control.check_path()  # are we looking at the place where the file was?
            raise
        try:
            header = files.parse_header(os.pread(fd, kernel.PAGE, 0), path, "syncdata")
            if header.parent != self._control.header.identity or header.options[0] != index:
                self._control.check_path()
                raise IncompatibleFormat(
                    f"{path} belongs to another Synchronizer than {self._control.path}: were some of the three files "
                    "replaced? It is left as it is; remove it if it is a leftover."
                )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def target(self, index: int, size: int, renew: bool) -> Mapping:
        """With `renew`, a new inode that `install` will give the name; it grows by a quarter at least."""
        fd = -1
        if not renew:
            with suppress(FileNotFoundError):
                fd = self.open(index, writable=True)
        if fd >= 0:
            old = _whole_pages(os.fstat(fd).st_size)  # somebody may have changed that
            wanted = kernel.PAGE + size + self.end
            length = old if wanted <= old else _whole_pages(max(wanted, old + old // 4))
            try:
                return self._map_target(os.dup(fd), index, length)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                return self._map_target(os.dup(fd), index, _whole_pages(wanted))  # without growing in advance
            finally:
                os.close(fd)
        name = self._new_name(index) if renew else self.path(index)
        page = files.new_header(
            "syncdata", durability=self._durability, options=(index,), parent=self._control.header.identity
        )
        length = _whole_pages(kernel.PAGE + size + self.end)
        if renew:
            self.discard(index)
        model = self._like(index)
        files.create(name, page, length, durability=self._durability, permissions=stat.S_IMODE(model.st_mode))
        with suppress(OSError):  # whoever may give files away, to whom this user namespace knows
            os.chown(name, model.st_uid, model.st_gid, follow_symlinks=False)
        return self._map_target(files.open_regular(name, writable=True), index, length)

    def _like(self, index: int) -> os.stat_result:
        """Whose owner and permissions a new inode takes: an operator may have changed them to let readers in."""
        try:
            return os.stat(self.path(index), follow_symlinks=False)
        except FileNotFoundError:
            return os.fstat(self._control.fd)

    def install(self, index: int) -> None:
        """Gives the new inode the name of the data file, for readers who look for it from now on."""
        os.rename(self._new_name(index), self.path(index))
        if self._durability == "power":
            files.sync_directory(self.path(index))

    def discard(self, index: int) -> None:
        """Removes what a writer that died before `install` has left."""
        with suppress(FileNotFoundError):
            os.unlink(self._new_name(index))

    def set_aside(self, index: int) -> None:
        """A file that nobody reads, and whose header did not survive, would stop the writer: it gets another name.

        Only what a power cut leaves (zeros, a short file, a checksum that is wrong); what is somebody else's stays.
        """
        path = self.path(index)
        try:
            fd = files.open_regular(path, writable=False)
        except (FileNotFoundError, IncompatibleFormat, IsADirectoryError):
            return
        try:
            page = os.pread(fd, kernel.PAGE, 0)
            damaged = len(page) < kernel.PAGE or not any(page[:512])  # a sector that the disk never had
            if not damaged:
                files.parse_header(page, path, "syncdata")
        except IncompatibleFormat:
            pass
        except CorruptionError:
            damaged = True
        finally:
            os.close(fd)
        if damaged:
            os.rename(path, path + ".damaged")

    def _new_name(self, index: int) -> str:
        return self.path(index) + ".new"


def _whole_pages(size: int) -> int:
    return -(-size // kernel.PAGE) * kernel.PAGE
