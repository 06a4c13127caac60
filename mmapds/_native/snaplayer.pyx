# cython: language_level=3, boundscheck=False, wraparound=False, auto_pickle=False
"""What a snapshot map consists of, as one process has it mapped: layers, the delta, and a version of the map.

The protocol, and why it is right, is in snapshot.h. Here is what surrounds it: the checks of what a file says about itself
before any of it is used, the verification of blocks, and the index that a process makes of a delta whose own it must not
trust, because another boot wrote it, or because everything is to be verified.

Rejected: an order of the delta's records in the shared file. Only who iterates needs it, and sorting what is new since the
last time is cheaper than keeping a tree that others read.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from mmapds._native.atomics cimport load_acquire_u64, load_relaxed_u64
from mmapds._native.kernel cimport kernel_lost, raise_errno
from mmapds._native.region cimport Mapping

from xxhash import xxh3_64_intdigest

from mmapds.errors import CorruptionError


cdef extern from *:
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)


cdef extern from "<sys/mman.h>" nogil:
    int msync(void *base, size_t length, int flags)
    int MS_SYNC


cdef extern from "<errno.h>" nogil:
    int errno


cdef object hash_of = xxh3_64_intdigest
cdef uint64_t HEADS_AT = 2 * MMAPDS_PAGE
cdef uint64_t LIMIT = <uint64_t>1 << 62


# ---- keys ----------------------------------------------------------------------------------------------------------

cdef const char *key_bytes(object key, int kind, Py_ssize_t *size) except NULL:
    cdef const char *data
    if type(key) is bytes and kind != STR_KEYS and len(<bytes>key) <= MMAPDS_KEY:       # the fast way
        size[0] = len(<bytes>key)
        return PyBytes_AS_STRING(key)
    if isinstance(key, str) and kind != BYTES_KEYS:
        data = PyUnicode_AsUTF8AndSize(key, size)
    elif isinstance(key, bytes) and kind != STR_KEYS:
        data = PyBytes_AS_STRING(key)
        size[0] = len(<bytes>key)
    else:
        expected = "str or bytes" if kind == NO_KEYS else "str" if kind == STR_KEYS else "bytes"
        raise TypeError(f"the keys of this map are {expected}, got {type(key).__name__}")
    if size[0] > MMAPDS_KEY:
        raise ValueError(f"a key has at most {MMAPDS_KEY:,} bytes, this one has {size[0]:,}")
    return data


cdef uint64_t key_hash(object key, const char *data, Py_ssize_t size) except? 0:
    return hash_of(key if type(key) is bytes else PyBytes_FromStringAndSize(data, size))


cdef object key_object(const char *key, Py_ssize_t size, int kind):
    if kind == BYTES_KEYS:
        return PyBytes_FromStringAndSize(key, size)
    try:
        return PyUnicode_DecodeUTF8(key, size, NULL)
    except UnicodeDecodeError as error:
        raise CorruptionError(f"a key is not UTF-8: {error}; mmapds verify finds the file") from None


# ---- layers --------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class Layer:
    """`options`: those of the file's header. `verify`: each block before it is used for the first time."""

    def __init__(self, Mapping mapping not None, uint64_t number, bytes identity not None, tuple options not None,
                 bint verify):
        cdef uint64_t size = mapping.size
        cdef uint64_t end, metadata, guide, guides, common, table, buckets, probes, sums, blocks
        _, records, end, metadata, guide, guides, common, table, buckets, probes, sums, stored, _, sums_hash = options[:14]
        self.mapping = mapping
        self.number = number
        self.identity = identity
        if stored != size:
            raise CorruptionError(f"{mapping.path} has {size} bytes, {stored} belong there: restore a copy")
        # Each part begins where the one before it ends; none of these sums can wrap once the one before was in bounds.
        blocks = 0
        if (size > LIMIT or end < MMAPDS_PAGE or end > size or end % 8 or metadata > size - end
                or guide < end + metadata or guide > size or guide % 8
                or guides > (size - guide) // sizeof(mmapds_guide)
                or table < guide + guides * sizeof(mmapds_guide) or table > size or table % 64
                or buckets < 1 or buckets > (size - table) // 64
                or sums != table + buckets * 64
                or probes < 1 or probes > buckets or common > MMAPDS_KEY
                or <uint64_t>records > (end - MMAPDS_PAGE) // 8
                or guides != (<uint64_t>records + MMAPDS_GUIDED - 1) // MMAPDS_GUIDED):
            raise self.wrong()
        blocks = (sums - MMAPDS_PAGE + MMAPDS_BLOCK - 1) // MMAPDS_BLOCK
        if blocks > (size - sums) // 8 or sums + 8 * blocks + 8 != size:
            raise self.wrong()
        mapping.seal = <const uint64_t *>(mapping.base + size - 8)
        mapping.check()
        self.snap.base = mapping.base
        self.snap.end = end
        self.snap.guide = <const mmapds_guide *>(mapping.base + guide)
        self.snap.guides = guides
        self.snap.common = common
        self.snap.table = <const uint64_t *>(mapping.base + table)
        self.snap.buckets = buckets
        self.snap.probes = probes
        self.snap.records = records
        self.snap.sums = sums
        self.metadata_size = metadata
        self.sums_hash = sums_hash
        if verify:
            self.bits = <uint64_t *>calloc(blocks // 64 + 1, 8)
            if self.bits is NULL:
                raise MemoryError
            self.snap.checked = self.bits
            self.check_sums()

    def __dealloc__(self):
        free(self.bits)

    def wrong(self):
        return CorruptionError(f"{self.mapping.path}: the header's offsets do not fit together: restore a copy")

    @property
    def path(self):
        return self.mapping.path

    @property
    def records(self):
        return self.snap.records

    @property
    def size(self):
        """Bytes of the file."""
        return self.mapping.size

    @property
    def blocks(self):
        return (self.snap.sums - MMAPDS_PAGE + MMAPDS_BLOCK - 1) // MMAPDS_BLOCK

    @property
    def metadata(self):
        """The user's metadata, encoded."""
        cdef bytes found
        if self.metadata_size and self.snap.checked is not NULL:
            for block in range((self.snap.end - MMAPDS_PAGE) // MMAPDS_BLOCK,
                               (self.snap.end + self.metadata_size - 1 - MMAPDS_PAGE) // MMAPDS_BLOCK + 1):
                self.check_block(block)
        found = PyBytes_FromStringAndSize(self.snap.base + self.snap.end, self.metadata_size)
        self.mapping.check()
        return found

    cdef int check_sums(self) except -1:
        if not self.sums_checked:
            found = hash_of(PyMemoryView_FromMemory(<char *>self.snap.base + self.snap.sums, 8 * self.blocks, 0x100))
            self.mapping.check()
            if found != self.sums_hash:
                raise CorruptionError(
                    f"{self.mapping.path}: the checksums of its blocks, from byte {self.snap.sums} on, are damaged: "
                    "restore a copy"
                )
            self.sums_checked = True
        return 0

    cdef int check_block(self, uint64_t block) except -1:
        cdef uint64_t start = MMAPDS_PAGE + block * MMAPDS_BLOCK
        cdef uint64_t size = min(<uint64_t>MMAPDS_BLOCK, self.snap.sums - start)
        cdef uint64_t stored, found
        if self.bits is not NULL and self.bits[block // 64] >> (block % 64) & 1:
            return 0
        self.check_sums()
        stored = load_relaxed_u64(<const uint64_t *>(self.snap.base + self.snap.sums) + block)
        found = hash_of(PyMemoryView_FromMemory(<char *>self.snap.base + start, size, 0x100))
        self.mapping.check()
        if found != stored:
            raise CorruptionError(
                f"{self.mapping.path}: block {block} (bytes {start} to {start + size}) is damaged: its checksum is "
                f"0x{found:016x}, 0x{stored:016x} is stored: restore a copy"
            )
        if self.bits is not NULL:
            self.bits[block // 64] |= <uint64_t>1 << (block % 64)
        return 0

    cdef int verify_wanted(self) except -1:
        return self.check_block(self.snap.wanted)

    def populate(self, bytes start, bytes stop, bint everything):
        """Faults in the records of [start, stop), or all of the file."""
        cdef uint64_t first = MMAPDS_PAGE, end = self.snap.end, group = 0
        if everything:
            self.mapping.populate(self.mapping.base, self.mapping.size, False)
            return
        if start is not None:
            while snap_lower(&self.snap, PyBytes_AS_STRING(start), len(start), &first, &group) != SNAP_FOUND:
                self.wanted_or_raise()
        if stop is not None:
            while snap_lower(&self.snap, PyBytes_AS_STRING(stop), len(stop), &end, &group) != SNAP_FOUND:
                self.wanted_or_raise()
        first &= ~<uint64_t>(MMAPDS_PAGE - 1)
        if end > first:
            self.mapping.populate(self.mapping.base + first, end - first, False)

    cdef int wanted_or_raise(self) except -1:
        """After a search that failed: verifies the block that was wanted, or raises."""
        self.mapping.check()
        if self.snap.checked is NULL or self.bits[self.snap.wanted // 64] >> (self.snap.wanted % 64) & 1:
            raise CorruptionError(f"{self.mapping.path}: a record, or what leads to it, is damaged: restore a copy")
        return self.verify_wanted()

    def verify(self, list found=None):
        """Checks every block; how many. What is wrong is raised, or, with a list, appended to it."""
        cdef uint64_t block, blocks = self.blocks
        try:
            self.check_sums()
        except CorruptionError as error:
            if found is None:
                raise
            found.append(str(error))
            return 0
        for block in range(blocks):
            if block % 64 == 0:
                PyErr_CheckSignals()
                with nogil:
                    pass
            try:
                self.check_block(block)
            except CorruptionError as error:
                if found is None:
                    raise
                found.append(str(error))
        return blocks


# ---- the delta -----------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class Order:

    def __dealloc__(self):
        free(self.offsets)


@cython.final
@cython.no_gc
cdef class Delta:
    """`options`: those of the file's header. `own`: nothing is trusted but records whose checksums are right."""

    def __init__(self, Mapping mapping not None, uint64_t number, bytes identity not None, tuple options not None, bint own):
        cdef uint64_t size = mapping.size, stored, buckets
        _, stored, buckets, self.entries = options[:4]
        self.mapping = mapping
        self.number = number
        self.identity = identity
        if stored != size or size > (<uint64_t>1 << 34) or buckets < 1 or buckets > (size - HEADS_AT) // 4:
            raise CorruptionError(f"{mapping.path} has {size} bytes, and says {stored} and {buckets} buckets: restore a copy")
        if load_relaxed_u64(<const uint64_t *>(mapping.base + size - 8)) != MMAPDS_SENTINEL:
            mapping.check()
            raise CorruptionError(f"{mapping.path}: its last word is not the sentinel: it was cut, or not all of it written")
        mapping.seal = <const uint64_t *>(mapping.base + size - 8)
        self.snap.base = mapping.base
        self.snap.size = size - 8
        self.snap.buckets = buckets
        self.snap.start = (HEADS_AT + 4 * buckets + 63) & ~<uint64_t>63
        if self.snap.start > self.snap.size:
            raise CorruptionError(f"{mapping.path}: {buckets} buckets do not fit into {size} bytes: restore a copy")
        self.own = own
        self.reached = self.snap.start
        if own:
            self.heads = <uint32_t *>calloc(buckets, 4)
            if self.heads is NULL:
                raise MemoryError
            self.snap.heads = self.heads
            self.snap.nodes = <const char *>self.heads      # nothing refers to it yet
            self.snap.room = sizeof(mmapds_node)
            self.node_count = 1                             # a reference is never 0
        else:
            self.snap.heads = &(<mmapds_delta *>mapping.base).heads[0]
            self.snap.nodes = mapping.base
            self.snap.room = self.snap.size

    def __dealloc__(self):
        free(self.heads)
        free(self.nodes)

    @property
    def path(self):
        return self.mapping.path

    @property
    def start(self):
        return self.snap.start

    @property
    def limit(self):
        """Where batches must end."""
        return self.snap.size

    @property
    def size(self):
        return self.mapping.size

    @property
    def written(self):
        """End of the last batch that was, or is being, linked."""
        return load_acquire_u64(&(<mmapds_delta *>self.mapping.base).written)

    def sync(self, Py_ssize_t start, Py_ssize_t end):
        """msync of the batches in [start, end), and of the links, with the GIL released."""
        cdef Py_ssize_t at = start & -MMAPDS_PAGE
        cdef int failed
        with nogil:
            failed = errno if msync(self.mapping.base + at, end - at, MS_SYNC) != 0 else 0
        if failed:
            raise_errno(failed, self.mapping.path)

    cdef int reserve(self, uint64_t count) except -1:
        """Room for so many more nodes of our own."""
        cdef char *larger
        cdef uint64_t room = max(<uint64_t>256, self.node_room)
        while room < self.node_count + count:
            room *= 2
        if room != self.node_room:
            larger = <char *>realloc(self.nodes, room * sizeof(mmapds_node))
            if larger is NULL:
                raise MemoryError
            self.nodes = larger
            self.node_room = room
            self.snap.nodes = larger
            self.snap.room = room * sizeof(mmapds_node)
        return 0

    cdef int index(self, uint64_t at, uint64_t next, const mmapds_batch *found) except -1:
        """Nodes of our own for a batch, unless another thread was faster: hashing may let others run."""
        cdef uint64_t first = at + sizeof(mmapds_batch) + found.count * sizeof(mmapds_node), data = first, i
        cdef uint64_t *hashes = <uint64_t *>malloc(8 * found.count + 8)
        cdef snap_record record
        cdef mmapds_node *node
        if hashes is NULL:
            raise MemoryError
        try:
            for i in range(found.count):
                self.parse(data, next, at, &record)
                hashes[i] = hash_of(PyMemoryView_FromMemory(<char *>record.key, record.key_size, 0x100))
                data = record.end - self.snap.base
            if self.reached != at:
                return 0
            self.reserve(found.count)
            data = first                # from here on nothing else runs
            for i in range(found.count):
                self.parse(data, next, at, &record)
                node = <mmapds_node *>self.nodes + self.node_count
                node.record = <uint32_t>(data // 8)
                node.hash = hashes[i]
                snap_link(self.heads, self.snap.buckets, self.nodes, self.node_count * sizeof(mmapds_node))
                self.node_count += 1
                data = record.end - self.snap.base
            self.entries = found.entries
            self.reached = next
        finally:
            free(hashes)
        return 0

    cdef uint64_t batch(self, uint64_t at, uint64_t end, mmapds_batch *found) except 0:
        """Reads the batch at `at`, once, and checks what it says; where it ends."""
        cdef const uint64_t *words = <const uint64_t *>(self.snap.base + at)
        cdef uint64_t size = 0
        cdef int i
        if at % 8 == 0 and end - at >= sizeof(mmapds_batch):
            for i in range(8):
                (<uint64_t *>found)[i] = load_relaxed_u64(words + i)
            size = found.size
        if (size < sizeof(mmapds_batch) or size > end - at or size % 8
                or found.count > (size - sizeof(mmapds_batch)) // (sizeof(mmapds_node) + 8)
                or found.check != mmapds_batch_check(found, at, <const uint8_t *>PyBytes_AS_STRING(self.identity))):
            self.mapping.check()
            raise CorruptionError(
                f"{self.mapping.path}: the batch at byte {at} is damaged: what was committed from there on is not to be "
                "had; restore a copy, or see mmapds verify"
            )
        return at + size

    cdef int reach(self, uint64_t end) except -1:
        """Everything up to `end` may be looked for from now on."""
        cdef mmapds_batch found
        cdef uint64_t at, next
        if end > self.snap.size or end < self.snap.start or end % 8:
            raise CorruptionError(
                f"{self.mapping.path}: the manifest says that {end} bytes of it count, and it has {self.snap.size}: "
                "restore a copy"
            )
        if not self.own:
            self.reached = max(self.reached, end)
            return 0
        while self.reached < end:
            at = self.reached
            next = self.batch(at, end, &found)
            self.check_hash(at, &found)
            self.index(at, next, &found)
        return 0

    def whole(self, uint64_t end):
        """(how much of the batches before `end` is whole, from the first on, len of the map then). For a delta that nobody
        synced, when the power has gone: a version that was, if not the last one."""
        if not self.own or end > self.snap.size or end < self.reached:
            self.reach(end)
            return end, None
        try:
            self.reach(end)
        except CorruptionError:
            self.mapping.check()
            if self.later(end):         # damage in the middle is not what a power cut leaves of a file that grows
                raise
        return self.reached, self.entries

    cdef bint later(self, uint64_t end):
        """Whether there is a batch that is right behind the one that is not."""
        cdef mmapds_batch found
        cdef uint64_t at = self.reached + 8, next
        while at + sizeof(mmapds_batch) <= end:
            memcpy(&found, self.snap.base + at, sizeof(found))
            if found.check == mmapds_batch_check(&found, at, <const uint8_t *>PyBytes_AS_STRING(self.identity)):
                try:
                    self.batch(at, end, &found)
                    self.check_hash(at, &found)
                    return True
                except CorruptionError:
                    pass
            at += 8
        return False

    cdef int parse(self, uint64_t data, uint64_t end, uint64_t batch, snap_record *record) except -1:
        if data > end or not snap_parse(self.snap.base + data, self.snap.base + end, record):
            self.mapping.check()
            raise CorruptionError(f"{self.mapping.path}: a record of the batch at byte {batch} is damaged: restore a copy")
        return 0

    cdef int check_hash(self, uint64_t at, const mmapds_batch *found) except -1:
        cdef uint64_t data = at + sizeof(mmapds_batch) + found.count * sizeof(mmapds_node)
        computed = hash_of(PyMemoryView_FromMemory(<char *>self.snap.base + data, at + found.size - data, 0x100))
        self.mapping.check()
        if computed != found.hash:
            raise CorruptionError(
                f"{self.mapping.path}: the records of the batch at byte {at} (version {found.version}) do not match their "
                "checksum: restore a copy"
            )
        return 0

    def batches(self, uint64_t end):
        """(offset, end, count, version, entries) of each batch before `end`; CorruptionError at the first that is not right."""
        cdef mmapds_batch found
        cdef uint64_t at = self.snap.start, next
        while at < end:
            next = self.batch(at, end, &found)
            self.check_hash(at, &found)
            yield at, next, found.count, found.version, found.entries
            at = next

    cdef int collect(self, uint64_t start, uint64_t end, walked *into) except -1:
        """The records of [start, end), as keys to be sorted."""
        cdef mmapds_batch found
        cdef snap_record first, record
        cdef snap_key *larger
        cdef uint64_t at = start, next, data, common = 0, i
        while at < end:
            next = self.batch(at, end, &found)
            self.check_hash(at, &found)     # what is sorted may become a layer, whose checksums are right
            data = at + sizeof(mmapds_batch) + found.count * sizeof(mmapds_node)
            if into.room - into.count < found.count:
                into.room = max(into.count + found.count, 2 * into.room)
                larger = <snap_key *>realloc(into.keys, into.room * sizeof(snap_key))
                if larger is NULL:
                    raise MemoryError
                into.keys = larger
            for i in range(found.count):
                self.parse(data, next, at, &record)
                if into.count == 0:
                    first = record
                    common = record.key_size
                elif common:
                    common = snap_common(first.key, common, record.key, record.key_size)
                into.keys[into.count].offset = <uint32_t>(data // 8)
                into.count += 1
                data = record.end - self.snap.base
            at = next
        for i in range(into.count):     # now that it is known what all have in common
            self.parse(<uint64_t>into.keys[i].offset * 8, end, start, &record)
            into.keys[i].prefix = snap_prefix(record.key, record.key_size, common)
        return 0

    cdef Order order(self, uint64_t end):
        """Costs a pass over what is new since the last time, and one over the offsets."""
        cdef Order before = self.sorted_keys, made
        cdef walked new
        cdef uint64_t count, i = 0, j = 0
        cdef snap_record a, b
        cdef int order
        if before is not None and before.end == end:
            return before
        if before is not None and before.end > end:
            before = None
        new.keys = NULL
        new.count = new.room = 0
        made = Order.__new__(Order)
        made.end = end
        try:
            self.collect(self.snap.start if before is None else before.end, end, &new)
            made.offsets = <uint32_t *>malloc(4 * (new.count + (0 if before is None else before.count)) + 4)
            if made.offsets is NULL:
                raise MemoryError
            count = snap_sort(new.keys, new.count, self.snap.base, self.snap.base + end, <uint32_t *>new.keys)
            if before is None:
                memcpy(made.offsets, new.keys, 4 * count)
                made.count = count
            else:
                while i < count or j < before.count:
                    order = 0
                    if i < count:
                        self.parse((<uint64_t>(<uint32_t *>new.keys)[i]) * 8, end, 0, &a)
                    else:
                        order = 1
                    if j < before.count:
                        self.parse(<uint64_t>before.offsets[j] * 8, end, 0, &b)
                    else:
                        order = -1
                    if order == 0:
                        order = snap_compare(a.key, a.key_size, b.key, b.key_size)
                    if order <= 0:
                        made.offsets[made.count] = (<uint32_t *>new.keys)[i]
                        i += 1
                        j += order == 0         # the younger one counts
                    else:
                        made.offsets[made.count] = before.offsets[j]
                        j += 1
                    made.count += 1
        finally:
            free(new.keys)
        if self.sorted_keys is None or self.sorted_keys.end < end:
            self.sorted_keys = made
        return made


# ---- a version -----------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class State:

    def __init__(self, uint64_t version, uint64_t entries, int keys, tuple layers not None, Delta delta, uint64_t end,
                 int64_t clock, uint64_t cut=0):
        cdef Layer layer
        cdef int i
        if len(layers) > MMAPDS_LAYERS:
            raise CorruptionError(f"the manifest names {len(layers)} layers, {MMAPDS_LAYERS} are the most: restore a copy")
        self.version = version
        self.entries = entries
        self.keys = keys
        self.cut = cut
        self.layers = layers
        for i in range(len(layers)):
            layer = layers[i]
            self.view.layers[i] = &layer.snap
            self.watch(layer.mapping)
        self.view.count = len(layers)
        self.view.clock = clock
        if delta is not None:
            delta.reach(end)
            self.delta = delta
            self.view.delta = &delta.snap
            self.view.end = end
            self.watch(delta.mapping)

    cdef int watch(self, Mapping mapping) except -1:
        self.marks[self.files] = &mapping.lost
        self.seals[self.files] = mapping.seal
        self.files += 1
        return 0

    @property
    def end(self):
        """Bytes of the delta that count."""
        return self.view.end

    @property
    def clock(self):
        return self.view.clock

    @property
    def now(self):
        """The map's time, in nanoseconds."""
        return snap_now(self.view.clock)

    cdef int check_lost(self) except -1:
        cdef Layer layer
        cdef int i
        for i in range(self.files):
            if kernel_lost(self.marks[i]) or load_relaxed_u64(self.seals[i]) != MMAPDS_SENTINEL:
                break
        else:
            return 0
        if self.delta is not None:
            self.delta.mapping.check()
        for layer in self.layers:
            layer.mapping.check()
        return 0

    def ensure(self):
        """MappingLost if a part of any of its files is gone."""
        self.check_lost()

    cdef int raise_for(self, int status, int where) except -1:
        """After a status below 0: verifies the block that was wanted, or raises."""
        self.check_lost()
        if status == SNAP_UNSOUND:
            return (<Layer>self.layers[where]).verify_wanted()
        path = self.delta.mapping.path if where < 0 else (<Layer>self.layers[where]).mapping.path
        raise CorruptionError(f"{path}: a record, or what leads to it, is damaged: mmapds verify says where; restore a copy")

    cdef int find(self, uint64_t hash, const char *key, uint32_t size, snap_record *record) except -1:
        """SNAP_FOUND, with the newest record, which may be gone or have expired; or SNAP_NONE."""
        cdef int where = -1
        cdef int status = snap_get(&self.view, hash, key, size, record, &where)
        while status < 0:
            self.raise_for(status, where)
            status = snap_get(&self.view, hash, key, size, record, &where)
        return status
