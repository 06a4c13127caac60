# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""Making layers: sorting within a limit of memory, merging, and the index; and appending to a delta.

A :class:`Sorter` collects records in memory. When it is full, they are sorted and written to a file without a name, a
:class:`Run`; in the end all runs are merged. `write_layer` writes what a cursor walks into a new file: first the records,
one after the other, then, in a second pass over them, guide and table, last the checksums. Memory of our own is what the
Sorter has; tables lie in the file, and so in the page cache.

A file is written whole, two megabytes at a time, before anything is stored through its mapping: of such writes the page
cache of ext4, XFS and others makes huge pages, and a lookup in a file that is mapped by huge pages spares the walks through
page tables, which cost as much as the memory itself. What is not huge works as well.

Prior art: external merge sort; LMDB's and RocksDB's bulk loaders, which want sorted input. Rejected: hashing keys in the
first pass and keeping the hashes (8 bytes for each record, of memory that the limit does not have).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mmapds._native.atomics cimport load_relaxed_u64, store_seq_cst_u64
from mmapds._native.region cimport Mapping
from mmapds._native.snapcursor cimport Cursor, Run
from mmapds._native.snaplayer cimport *
from mmapds._native.snaplayer cimport Delta, Layer, State, key_bytes, key_hash

from xxhash import xxh3_64_intdigest

from mmapds._native.kernel cimport raise_errno


cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int fd, const void *data, size_t size, int64_t offset)
    int ftruncate(int fd, int64_t size)


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_HUGEPAGE
    void *MAP_FAILED


cdef extern from "<errno.h>" nogil:
    int errno


cdef object hash_of = xxh3_64_intdigest
cdef uint64_t CHUNK = 2 << 20           # bytes that are written by one call: a huge page
cdef uint64_t PAUSE = 4096              # records between two looks for signals
cdef Py_ssize_t TOGETHER = 64           # changes that are looked up together
cdef int AHEAD = 32                     # buckets that are fetched before they are written to
cdef uint64_t LARGEST = <uint64_t>1 << 34   # bytes in memory: offsets are 32 bits, in units of 8
cdef uint64_t EACH = 48                 # bytes for each record that sorting needs: the key's entry, and as much twice again
cdef double LOAD = 0.72                 # of the table

assert MMAPDS_KEY + 64 == 65600

GUIDED = MMAPDS_GUIDED
MOST_LAYERS = MMAPDS_LAYERS
BLOCK = MMAPDS_BLOCK
KEY_LIMIT = MMAPDS_KEY


cdef int write_all(int fd, const char *data, uint64_t size, uint64_t offset) except -1:
    cdef ssize_t written
    while size:
        with nogil:
            written = pwrite(fd, data, min(size, CHUNK * 64), offset)
        if written < 0:
            if errno != EINTR:
                raise_errno(errno, None)
            PyErr_CheckSignals()
            continue
        data += written
        size -= written
        offset += written
    return 0


cdef class Output:
    """What goes into a new file, from its second page on, a huge page at a time."""
    cdef int fd
    cdef char *buffer
    cdef uint64_t filled, offset        # of the file, where the buffer begins

    def __cinit__(self, int fd):
        self.fd = fd
        self.buffer = <char *>malloc(CHUNK)
        if self.buffer is NULL:
            raise MemoryError
        memset(self.buffer, 0, MMAPDS_PAGE)
        self.filled = MMAPDS_PAGE

    def __dealloc__(self):
        free(self.buffer)

    cdef int write(self, const char *data, uint64_t size) except -1:
        cdef uint64_t part
        while size > CHUNK - self.filled:
            part = CHUNK - self.filled
            memcpy(self.buffer + self.filled, data, part)
            self.filled = CHUNK
            self.flush()
            data += part
            size -= part
        memcpy(self.buffer + self.filled, data, size)
        self.filled += size
        return 0

    def add(self, const uint8_t[:] data not None):
        """These bytes."""
        if len(data):
            self.write(<const char *>&data[0], len(data))

    def zeros(self, uint64_t end):
        """The file's end: what is missing is zero."""
        cdef uint64_t part
        while self.offset + self.filled < end:
            part = min(CHUNK - self.filled, end - self.offset - self.filled)
            memset(self.buffer + self.filled, 0, part)
            self.filled += part
            self.flush()

    def flush(self):
        """All of it is in the file; where that ends."""
        cdef uint64_t filled = self.filled
        write_all(self.fd, self.buffer, filled, self.offset)
        self.offset += filled
        self.filled = 0
        return self.offset


cdef void *reserve(uint64_t size) except NULL:
    """Memory that is taken when it is used, in huge pages where there are some: what is sorted is read in any order."""
    cdef void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if mapped == MAP_FAILED:
        raise MemoryError
    madvise(mapped, size, MADV_HUGEPAGE)        # a hint
    return mapped


@cython.final
cdef class Sorter:
    """`limit`: bytes of memory. A record counts with what sorting needs."""

    def __cinit__(self, uint64_t limit, int keys):
        cdef uint64_t budget = min(limit, LARGEST)
        self.keys = keys
        self.base = <char *>reserve(budget + (1 << 20))
        self.room = budget + (1 << 20)
        self.list = <snap_key *>reserve((budget // EACH + 1) * sizeof(snap_key))
        self.budget = budget

    def __dealloc__(self):
        if self.base is not NULL:
            munmap(self.base, self.room)
        if self.list is not NULL:
            munmap(self.list, (self.budget // EACH + 1) * sizeof(snap_key))

    def __len__(self):
        return self.count

    cdef int put(self, const char *key, Py_ssize_t size, const char *value, uint64_t value_size, int64_t expires,
                 bint gone) except -1:
        """1, or 0 if it does not fit any more."""
        cdef uint64_t needed = snap_size(size, value_size, expires)
        cdef char *at
        if value_size > LARGEST or self.used + needed + EACH * (self.count + 1) > self.budget:
            return 0
        at = snap_compose(self.base + self.used, key, size, value_size, expires, gone)
        memcpy(at, value, value_size)
        memset(at + value_size, 0, snap_up(value_size) - value_size)
        self.list[self.count].offset = <uint32_t>(self.used // 8)
        if self.count == 0:
            self.first = PyBytes_FromStringAndSize(key, size)
            self.common = size
        elif self.common:
            self.common = snap_common(PyBytes_AS_STRING(self.first), self.common, key, size)
        self.count += 1
        self.used += needed
        self.total += 1
        return 1

    def feed(self, iterator, encode, bint raw, uint64_t most):
        """Takes up to `most` items (`raw`: bytes need no encoding); True at the end of the iterator, False when there are more, or there is no more room."""
        cdef Py_ssize_t size = 0
        cdef const char *data
        cdef Py_buffer view
        cdef int fits
        cdef uint64_t i
        for i in range(most):
            if self.waiting is not None:
                item = self.waiting
                self.waiting = None
            else:
                try:
                    item = next(iterator)
                except StopIteration:
                    return True
                try:
                    key, value = item
                except (TypeError, ValueError):
                    raise TypeError(f"an item must be a pair of key and value, got {item!r:.80}") from None
                data = key_bytes(key, self.keys, &size)
                if self.keys == NO_KEYS:
                    self.keys = STR_KEYS if isinstance(key, str) else BYTES_KEYS
                item = (key, value if raw and type(value) is bytes else encode(value))
            key, value = item
            data = key_bytes(key, self.keys, &size)
            if type(value) is bytes:
                fits = self.put(data, size, PyBytes_AS_STRING(value), len(<bytes>value), 0, False)
            else:
                PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
                try:
                    fits = self.put(data, size, <char *>view.buf, view.len, 0, False)
                finally:
                    PyBuffer_Release(&view)
            if not fits:
                self.waiting = item
                return False
        return False

    @property
    def full(self):
        """Whether an item waits that found no room."""
        return self.waiting is not None

    def take_waiting(self):
        """The item that waits, which is larger than all the memory there is."""
        item = self.waiting
        self.waiting = None
        self.total += 1
        return item

    cdef int sort(self) except -1:
        cdef uint64_t i
        cdef snap_record record
        if self.sorted or self.count == 0:
            return 0
        with nogil:
            for i in range(self.count):
                if snap_parse(self.base + <uint64_t>self.list[i].offset * 8, self.base + self.used, &record):
                    self.list[i].prefix = snap_prefix(record.key, record.key_size, self.common)
            self.count = snap_sort(self.list, self.count, self.base, self.base + self.used, <uint32_t *>self.list)
        self.sorted = True
        return 0

    def spill(self, int fd):
        """Writes what there is to a file, sorted, from the second page on, and forgets it; where the file ends."""
        cdef Output writer = Output(fd)
        cdef uint64_t i
        cdef snap_record record
        self.sort()
        for i in range(self.count):
            if snap_parse(self.base + <uint64_t>(<uint32_t *>self.list)[i] * 8, self.base + self.used, &record):
                writer.write(record.start, record.end - record.start)
        self.count = self.used = 0
        self.sorted = False
        return writer.flush()

    def add_to(self, Cursor cursor not None):
        """One more source of a cursor, the oldest. It must not be added to meanwhile."""
        cdef snap_source *source
        self.sort()
        cursor.owners.append(self)
        source = cursor.more()
        source.base = self.base
        source.limit = self.base + self.used
        source.order = <uint32_t *>self.list
        source.stop = self.count


def spill_one(int fd, key, value, int keys):
    """A run of one record, that is written from where it is."""
    cdef Py_ssize_t size = 0
    cdef const char *data = key_bytes(key, keys, &size)
    cdef Py_buffer view
    cdef bytes head
    cdef char *end
    cdef uint64_t offset = MMAPDS_PAGE
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    try:
        head = PyBytes_FromStringAndSize(NULL, snap_size(size, 0, 0) + (8 if view.len > 0xffffffff else 0))
        end = snap_compose(PyBytes_AS_STRING(head), data, size, view.len, 0, False)
        write_all(fd, PyBytes_AS_STRING(head), len(head), offset)
        offset += len(head)
        write_all(fd, <char *>view.buf, view.len, offset)
        write_all(fd, b"\0\0\0\0\0\0\0", snap_up(view.len) - view.len, offset + view.len)
        return offset + snap_up(view.len)
    finally:
        PyBuffer_Release(&view)


# ---- layers --------------------------------------------------------------------------------------------------------

def write_records(Output writer not None, Cursor cursor not None, bint bottom, int64_t now, progress):
    """Writes the records that the cursor walks.

    `bottom`: nothing older is below, so what is gone, or expired before `now`, is left out; elsewhere what has expired
    becomes a record that says that its key is gone. Returns (end, records, how many that were alive are not any more).
    """
    cdef uint64_t records = 0, lapsed = 0, seen = 0
    cdef char[65600] head            # MMAPDS_KEY and the words before it
    cdef char *end
    cdef bint expired
    while cursor.step() != SNAP_NONE:
        out = &cursor.cursor.out
        seen += 1
        if progress is not None and seen % 65536 == 0:
            progress(seen)
        expired = not out.gone and out.expires and out.expires <= now
        lapsed += expired
        if out.gone or expired:
            if bottom:
                continue
            end = snap_compose(head, out.key, out.key_size, 0, 0, True)
            writer.write(head, end - head)
        else:
            writer.write(out.start, out.end - out.start)
        records += 1
    return writer.offset + writer.filled, records, lapsed


def buckets_for(uint64_t records):
    """Of a table for so many."""
    return max(<uint64_t>1, <uint64_t>(records / (LOAD * MMAPDS_BUCKET)) + 1)


cdef int insert(uint64_t *table, uint64_t buckets, uint64_t bucket, uint64_t entry, uint64_t *probes) except -1:
    cdef uint64_t probe = 1
    cdef int i
    cdef uint64_t *line
    while True:
        line = table + bucket * MMAPDS_BUCKET
        for i in range(MMAPDS_BUCKET):
            if line[i] == 0:
                line[i] = entry
                probes[0] = max(probes[0], probe)
                return 0
        probe += 1
        bucket += 1
        if bucket == buckets:
            bucket = 0


def write_index(Mapping mapping not None, uint64_t end, uint64_t guide_at, uint64_t table_at, uint64_t buckets, progress):
    """Guide and table of the records up to `end`, into a file that has room for them; (common, probes)."""
    cdef const char *base = mapping.base
    cdef mmapds_guide *guide = <mmapds_guide *>(mapping.base + guide_at)
    cdef uint64_t *table = <uint64_t *>(mapping.base + table_at)
    cdef snap_layer shape
    cdef snap_record first, record
    cdef uint64_t at = MMAPDS_PAGE, count = 0, common = 0, probes = 1, hash
    cdef uint64_t[64] waiting_bucket
    cdef uint64_t[64] waiting_entry
    cdef int waiting = 0, i
    shape.buckets = buckets
    first.key = NULL
    if snap_parse(base + at, base + end, &first):
        common = first.key_size         # at most: what it has in common with the others is found on the way
    while at < end:
        if not snap_parse(base + at, base + end, &record):
            mapping.check()
            raise RuntimeError(f"{mapping.path}: the record at {at} cannot be read back")
        if common:
            common = snap_common(first.key, common, record.key, record.key_size)
        if count % MMAPDS_GUIDED == 0:
            guide[count // MMAPDS_GUIDED].offset = at
        hash = hash_of(PyBytes_FromStringAndSize(record.key, record.key_size))     # cheaper than a view
        waiting_bucket[waiting] = snap_bucket(&shape, hash)
        waiting_entry[waiting] = at // 8 << 16 | (hash & 0xffff)
        prefetch(table + waiting_bucket[waiting] * MMAPDS_BUCKET)
        waiting += 1
        if waiting == AHEAD:
            for i in range(waiting):
                insert(table, buckets, waiting_bucket[i], waiting_entry[i], &probes)
            waiting = 0
        at = record.end - base
        count += 1
        if count % PAUSE == 0:
            PyErr_CheckSignals()
            with nogil:
                pass
            if progress is not None and count % 65536 == 0:
                progress(count)
    for i in range(waiting):
        insert(table, buckets, waiting_bucket[i], waiting_entry[i], &probes)
    for at in range((count + MMAPDS_GUIDED - 1) // MMAPDS_GUIDED):
        if snap_parse(base + guide[at].offset, base + end, &record):
            guide[at].prefix = snap_prefix(record.key, record.key_size, common)
    mapping.check()
    return common, probes


def write_sums(Mapping mapping not None, uint64_t sums):
    """The blocks' checksums, behind them, and the sentinel; their own hash."""
    cdef uint64_t *out = <uint64_t *>(mapping.base + sums)
    cdef uint64_t at = MMAPDS_PAGE, count = 0
    while at < sums:
        out[count] = hash_of(PyMemoryView_FromMemory(mapping.base + at, min(<uint64_t>MMAPDS_BLOCK, sums - at), 0x100))
        at += MMAPDS_BLOCK
        count += 1
        if count % 64 == 0:
            PyErr_CheckSignals()
    out[count] = MMAPDS_SENTINEL
    mapping.check()
    return hash_of(PyMemoryView_FromMemory(mapping.base + sums, 8 * count, 0x100))


# ---- commits -------------------------------------------------------------------------------------------------------

cdef struct pending:
    const char *key
    const char *value
    uint64_t hash, value_size
    int64_t expires
    uint32_t key_size
    int gone


cdef class Changes:
    """What one commit changes: keys, values and what they do to the number of entries."""
    cdef pending *list
    cdef Py_ssize_t count
    cdef list held
    cdef readonly int keys
    cdef readonly int64_t gained        # entries more than before
    cdef readonly uint64_t size         # bytes that the batch takes
    cdef uint64_t records_size
    cdef Py_ssize_t kept

    def __init__(self, State state not None, dict changes not None):
        """`changes`: key -> (bytes, expires), or None for a key that is gone; all keys are of the map's kind."""
        cdef pending *item
        cdef Py_ssize_t i = 0, done = 0, size = 0
        self.keys = state.keys
        self.held = []
        self.list = <pending *>malloc((len(changes) + 1) * sizeof(pending))
        if self.list is NULL:
            raise MemoryError
        for key, change in changes.items():
            if self.keys == NO_KEYS:
                self.keys = STR_KEYS if isinstance(key, str) else BYTES_KEYS
            item = &self.list[i]
            item.key = key_bytes(key, self.keys, &size)
            item.key_size = <uint32_t>size
            item.hash = key_hash(key, item.key, size)
            item.gone = change is None
            item.expires = 0
            item.value = b""
            item.value_size = 0
            self.held.append(key)
            if change is not None:
                data, expires = change
                item.value = PyBytes_AS_STRING(data)
                item.value_size = len(<bytes>data)
                item.expires = expires
                self.held.append(data)
            i += 1
            if i - done == TOGETHER:
                done = self.weigh(state, done, i)
                PyErr_CheckSignals()
        self.weigh(state, done, i)
        i = self.kept
        self.count = i
        self.size = sizeof(mmapds_batch) + i * sizeof(mmapds_node) + self.records_size
        state.ensure()

    cdef Py_ssize_t weigh(self, State state, Py_ssize_t start, Py_ssize_t end) except -1:
        """What changes [start, end) mean for the number of entries; those that change nothing are dropped."""
        cdef snap_record found
        cdef pending *item
        cdef Py_ssize_t i
        cdef bint was
        for i in range(start, end):
            snap_prefetch(&state.view, self.list[i].hash)
        for i in range(start, end):     # what comes from memory comes together
            snap_prefetch_next(&state.view, self.list[i].hash)
        for i in range(start, end):
            item = &self.list[i]
            was = state.find(item.hash, item.key, item.key_size, &found) == SNAP_FOUND and not found.gone
            self.gained += (0 if item.gone else 1) - was
            if not item.gone or was:    # else there is nothing to hide
                self.records_size += snap_size(item.key_size, item.value_size, item.expires)
                self.list[self.kept] = item[0]
                self.kept += 1
        return end

    def __dealloc__(self):
        free(self.list)

    def __len__(self):
        return self.count

    def sorter(self):
        """All of it, to be sorted; of a size that memory has."""
        cdef Sorter sorter = Sorter(self.records_size + EACH * (self.count + 1), self.keys)
        cdef Py_ssize_t i
        cdef pending *item
        for i in range(self.count):
            item = &self.list[i]
            if not sorter.put(item.key, item.key_size, item.value, item.value_size, item.expires, item.gone):
                raise MemoryError
        return sorter


cdef void link(Delta delta, uint64_t at, uint64_t count, uint64_t end) noexcept nogil:
    """Steps 2 and 3 (snapshot.h)."""
    cdef mmapds_delta *file = <mmapds_delta *>delta.snap.base
    cdef uint64_t i
    store_seq_cst_u64(&file.written, end)
    for i in range(count):
        snap_link(file.heads, delta.snap.buckets, <char *>delta.snap.base, at + sizeof(mmapds_batch) + i * sizeof(mmapds_node))


def append(Delta delta not None, Changes changes not None, uint64_t at, uint64_t version, uint64_t entries):
    """Writes a batch behind `at`, where the last one ends, and links it; its end, which is to be published.

    The delta is mapped to be written, and the caller is the only writer. Until `link` nothing refers to what is written.
    """
    cdef mmapds_batch *batch = <mmapds_batch *>(delta.snap.base + at)
    cdef uint64_t end = at + changes.size
    cdef char *record = <char *>&batch.nodes[changes.count]
    cdef char *value
    cdef pending *item
    cdef Py_ssize_t i
    if not delta.mapping.writable or delta.own or end > delta.snap.size:
        raise RuntimeError("this delta cannot take the batch")
    for i in range(changes.count):
        item = &changes.list[i]
        batch.nodes[i].next = 0
        batch.nodes[i].record = <uint32_t>((record - delta.snap.base) // 8)
        batch.nodes[i].hash = item.hash
        value = snap_compose(record, item.key, item.key_size, item.value_size, item.expires, item.gone)
        memcpy(value, item.value, item.value_size)
        memset(value + item.value_size, 0, snap_up(item.value_size) - item.value_size)
        record = value + snap_up(item.value_size)
    batch.hash = hash_of(PyMemoryView_FromMemory(
        <char *>&batch.nodes[changes.count], record - <char *>&batch.nodes[changes.count], 0x100))
    batch.size = changes.size
    batch.count = changes.count
    batch.version = version
    batch.entries = entries
    batch.zero[0] = batch.zero[1] = 0
    batch.check = mmapds_batch_check(batch, at, <const uint8_t *>PyBytes_AS_STRING(delta.identity))
    delta.mapping.check()
    link(delta, at, changes.count, end)
    return end
