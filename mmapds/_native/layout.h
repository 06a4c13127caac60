/* Every layout that mmapds puts into a file, drawn once and asserted at compile time.

   All integers are little-endian; all words are naturally aligned. "Immutable" bytes are written before a file gets its
   name and never again. Mutable words that different parties write lie on cache lines of their own.

   HEADER PAGE (4096 bytes, first in every file of mmapds)

      offset  size  field
           0     8  magic             89 6d 6d 61 70 64 73 0a   ("\x89mmapds\n")
           8     4  byte_order        0x0a0b0c0d
          12     4  format            2 bytes major, 2 bytes minor: a reader refuses another major
          16     8  kind              ASCII, zero padded: "sync", "syncdata", ...
          24     8  flags             bits a reader must know; all zero in format 1.0
          32    16  identity          random, of this file
          48    16  parent            identity of the file this one belongs to, or zero
          64     8  created           nanoseconds since 1970, for people
          72     4  durability        0 process, 1 power
          76     4  schema_length     bytes of schema_text that count
          80    16  schema_hash       xxh3_128 of the schema text, canonical (big-endian) bytes
          96   256  options           32 words; what they mean is the kind's own affair
         352  1680  schema_text       UTF-8, zero padded
        2032     8  (zero)
        2040     8  check             xxh3_64 of bytes 0..2039
      ---- mutable from here on ------------------------------------------------------------------------------
        2048    64  origin            boot id (16), st_dev (8), st_ino (8): where the volatile state was last valid
        2112    64  holder            pid (8), start time (8), name (32): whom to name in WriterBusy; never trusted
        2176    64  failed            nonzero: a flush failed and nothing has replaced what it lost
        2240  1856  (zero)

   SYNC FILE (<prefix>_sync, kind "sync"; options: 0 reader slots)

           0  4096  header page
        4096    64  commit            u64 sequence; 0: nothing published; its low bit is the active index
        4160    64  record 0          u64 sequence, size, hash, check, generation (see mmapds_record)
        4224    64  record 1          the same; commit and records share one 512-byte sector
        4288    64  waiters           u32: somebody may sleep on the low half of the sequence
        4352   128  slots in use      1,024 bits
        4480  3704  (zero)
        8184     8  sentinel          MMAPDS_SENTINEL: still there, so this page was not cut off
        8192   128  reader slot 0     u64 pins[2], u64 incarnation (not 0 once used), u64 pid (for people)
         ...
      139264        end

   DATA FILE (<prefix>_data_0 and _1, kind "syncdata", parent: the sync file; options: 0 index)

           0  4096  header page
        4096        the value, and room for a larger one
    size - 8     8  sentinel          MMAPDS_SENTINEL; a file that was cut has none where its mapping ends

   COUNTERS FILE (kind "counters"; options: 0 dtype (0 i64, 1 f64), 1 stride (bytes from cell to cell: 8, or 64 if padded),
   2 capacity)

           0  4096  header page
        4096    64  names             u64 names: how many entries are published (mmapds_count), u64 changes: removals,
                                      returns of a name and recoveries
        4160    64  changing          u64 removing, u64 returning: 1 + number of the entry whose removal, or return, is
                                      under way, or 0 (mmapds_count); u64 value and u64 how: what it is to return with
        4224   384  (zero)
        4608  3584  extents           112 x u64 cells_size, u64 names_size, u64 (zero), u64 check; check 0: not there
        8192        extent 0          cells_size bytes of cells, then names_size bytes of entries (whole pages both)
         ...        extent 1 ...      each begins where the one before it ends

      The cells of all extents are one array: cell i is its 8 bytes from i * stride. Cells 0 to capacity - 1 go by number
      only; the others have names: entry j is the name of cell capacity + j. A file never gives a cell to another name.
      In an extent, entries lie one after the other from the start of its names_size bytes, as many as fit before the
      last 8, which are the sentinel.

      entry  0     8  state             MMAPDS_LIVE, MMAPDS_REMOVED, or MMAPDS_DAMAGED (given up by a recovery)
             8     8  check             mmapds_entry_check; binds the name to its number and to this file
            16     1  length            1 to 255 bytes (0 in a damaged one)
            17   255  name              UTF-8, zero padded to a multiple of 8 bytes, length included

   QUEUE: a directory with "meta" (kind "queue"), segments, and what recovery has set aside

   META (options: 0 segment size, 1 maxsize, 2 max_bytes, 3 max_attempts, 4 level of compression, 5 bytes from which on)

           0  4096  header page
        4096   128  put       u64 lock word, tail, tail sequence, saved tail, saved sequence, epoch
        4224   128  take      u64 lock word, head, head sequence, changes, logged, finished
        4352   128  index     u64 capacity, used, free, timed, ready, leased, claimed, waiting bytes, held, fences, stamps,
                              holders (see mmapds_queue)
        4480   128  tallies   16 x u64: what has happened, for people
        4608   256  events    four times u32 count, u32 somebody sleeps on it: items, room, done, (spare); 64 bytes each
        4864    64  common    u64 shutdowns, last immediate one, time of the last look for dead holders
        4928  3264  (zero)
        8192  4096  undo log  256 x u64 offset, u64 value before; the first `logged` of them count
       12288 65536  holders   1,024 x 64 bytes: u64 token, u64 owing, u64 claims: entry of the last, u64 how many, u64 pid
       77824  4088  (zero)
       81912     8  sentinel  MMAPDS_SENTINEL
       81920        entries   capacity x 96 bytes (see mmapds_held), to the end of the file; the index

   SEGMENT (<path>/<number>.segment, 16 hexadecimal digits; kind "segment", parent: meta; options: 0 number, 1 units)

           0  4096  header page; in it, from 2304 on: u64 dirtied, synced, lock word, group (mmapds_segment_words)
        4096        records, one behind the other, at multiples of 8, to the end of the file

      A position is a count of bytes: unit k of the queue is the positions from k * segment size on, and segment number k of
      n units has those of units k to k + n - 1. n is 1 but for an item that is larger than a segment.

      record 0     8  check     mmapds_item_check: over all that follows up to `state`, the position and the queue
             8     8  hash      xxh3_64 of the payload as it is stored
            16     8  order     sequence (56 bits), flags (lower 8: MMAPDS_DELAYED, _COMPRESSED, _END)
            24     8  extent    epoch (24 bits), bytes of payload (lower 40)
            32     8  born      nanoseconds since 1970, a few ms coarse
            40     8  state     MMAPDS_ITEM_..., attempts, and a check of the words up to `place` (mmapds_item_state)
            48     8  wall      due then (nanoseconds since 1970), if returned with a delay
            56     8  wait      ... of so many nanoseconds
            64     8  place     if returned to the back: its place (2 * the tail then); 0: its own
            72    16  due, delay  if MMAPDS_DELAYED: when (CLOCK_BOOTTIME of the epoch's boot), and after how long
                   n  payload, and zeros up to a multiple of 8

      The words from `state` to `place` change, and matter to recovery only; while a boot lasts, meta alone tells what has
      become of an item. A record with MMAPDS_END has no payload and says that its segment has no more.

   SNAPSHOT MAP: a directory with a Synchronizer named "manifest" (its values are the manifests), layers, and one delta

   MANIFEST (words of 8 bytes)

           0     8  magic             MMAPDS_MANIFEST
           8     8  number            the next new file's
          16     8  entries           len of the map
          24     8  keys              0 none yet, 1 str, 2 bytes
          32     8  clock             the map's time is CLOCK_BOOTTIME plus this, on the boot that
          40    16  boot_id           ... says; on another one it is the wall clock's
          56     8  delta             its number, or 0
          64    16  delta identity
          80     8  delta end         bytes of it that are published
          88     8  layers            how many, newest first, 48 bytes each:
                                      u64 number, identity (16), u64 records, u64 bytes (of the file), u64 entries
                                      (len of the map when it was the newest layer, without a delta)

   LAYER (<path>/<number>.layer, 16 hexadecimal digits; kind "layer", parent: the manifest's sync file; options: 0 number,
   1 records, 2 end of the records, 3 bytes of metadata, 4 guide, 5 guide entries, 6 common, 7 table, 8 buckets, 9 probes,
   10 sums, 11 size of the file, 12 keys, 13 hash of the sums)

           0  4096  header page
        4096        records, ascending by key (bytewise), one behind the other, at multiples of 8
         ...        metadata          the user's, msgpack, zero padded to a multiple of 8
       guide        for each 16th record, from the first on: u64 8 bytes of its key from byte `common` on (big-endian, zero
                    padded), u64 its offset; the first `common` bytes are the same in all keys
       table        buckets x 64 bytes (at a multiple of 64): 8 x u64: offset / 8 in the upper 48 bits, the lower 16 bits of
                    the key's xxh3_64 below; 0: free. A key's first bucket is hash * buckets >> 64; one that is full goes
                    on in the next one, at most `probes` in all.
        sums        u64 xxh3_64 of each 64 KiB from 4096 to here, the last one shorter
    size - 8     8  sentinel          MMAPDS_SENTINEL

      record 0     4  bytes of key (lower 20 bits), MMAPDS_PAIR, MMAPDS_GONE, _EXPIRES, _LONG
             4     4  bytes of value, if not MMAPDS_LONG
                   8  bytes of value, if MMAPDS_LONG
                   8  when it expires, nanoseconds on the map's clock, if MMAPDS_EXPIRES
                   n  key, zero padded to a multiple of 8
                   n  value, likewise; none if MMAPDS_GONE, which hides what older layers say

   DELTA (<path>/<number>.delta; kind "delta", parent: the manifest's sync file; options: 0 number, 1 size, 2 buckets,
   3 len of the map when it was made)

           0  4096  header page
        4096    64  written           u64: end of the last batch whose nodes are linked, or being linked
        4160  4032  (zero)
        8192        heads             buckets x u32: the newest node, its offset / 8, of keys whose hash is in this bucket
         ...        batches, one behind the other, each of one commit
    size - 8     8  sentinel          MMAPDS_SENTINEL

      batch  0     8  check           mmapds_batch_check, over all that follows up to 64
             8     8  hash            xxh3_64 of its records
            16     8  size            of the batch, in bytes
            24     8  count           of its records
            32     8  version         of the map, which it makes
            40     8  entries         len of the map then
            48    16  (zero)
            64        nodes           count x 16: u32 next (an older node's offset / 8, or 0), u32 offset / 8 of the record,
                                      u64 hash of the key
                      records         as in a layer, in no order

   EMMAP COUNTERS FILE (not ours: written by emmap, of Erlang)

           0     8  magic             "EMMAP01\n"
           8     8  count             u64
          16        cells             count x int64; the file ends with them
*/
#ifndef MMAPDS_LAYOUT_H
#define MMAPDS_LAYOUT_H

#include "platform.h"
#include <stddef.h>
#include <stdint.h>

enum {
    MMAPDS_PAGE = 4096,
    MMAPDS_IMMUTABLE = 2048,   /* bytes of the header page that never change */
    MMAPDS_CHECKED = 2040,     /* of these, what the check covers */
    MMAPDS_OPTIONS = 32,
    MMAPDS_SCHEMA_TEXT = 1680,
    MMAPDS_FORMAT_MAJOR = 1,
    MMAPDS_FORMAT_MINOR = 0,
    MMAPDS_SLOTS = 1024,
    MMAPDS_SLOT_WORDS = MMAPDS_SLOTS / 64,
    MMAPDS_EXTENTS = 112,
    MMAPDS_NAME = 255, /* bytes in a counter's name */
};

#define MMAPDS_BYTE_ORDER 0x0a0b0c0dU
#define MMAPDS_SENTINEL 0x6c656e69746e6573ULL /* "sentinel" */
#define MMAPDS_LIMIT (1ULL << 39) /* bytes in a value are fewer: what mmap-sync's version word can say */

typedef struct {
    uint8_t magic[8];
    uint32_t byte_order;
    uint16_t format_major, format_minor;
    uint8_t kind[8];
    uint64_t flags;
    uint8_t identity[16];
    uint8_t parent[16];
    uint64_t created;
    uint32_t durability;
    uint32_t schema_length;
    uint8_t schema_hash[16];
    uint64_t options[MMAPDS_OPTIONS];
    uint8_t schema_text[MMAPDS_SCHEMA_TEXT];
    uint64_t zero;
    uint64_t check;
    /* mutable */
    uint8_t boot_id[16];
    uint64_t device, inode;
    uint8_t origin_pad[32];
    uint64_t holder_pid, holder_start;
    uint8_t holder_name[32];
    uint8_t holder_pad[16];
    uint64_t failed;
    uint8_t failed_pad[56];
    uint8_t rest[1856];
} mmapds_header;

_Static_assert(offsetof(mmapds_header, identity) == 32, "header");
_Static_assert(offsetof(mmapds_header, created) == 64, "header");
_Static_assert(offsetof(mmapds_header, schema_hash) == 80, "header");
_Static_assert(offsetof(mmapds_header, options) == 96, "header");
_Static_assert(offsetof(mmapds_header, schema_text) == 352, "header");
_Static_assert(offsetof(mmapds_header, check) == MMAPDS_CHECKED, "header");
_Static_assert(offsetof(mmapds_header, boot_id) == MMAPDS_IMMUTABLE, "header");
_Static_assert(offsetof(mmapds_header, holder_pid) == 2112, "header");
_Static_assert(offsetof(mmapds_header, failed) == 2176, "header");
_Static_assert(sizeof(mmapds_header) == MMAPDS_PAGE, "header");

/* What is published under one index. `check` binds the other words to each other and to the file (mmapds_record_check):
   a record that was half on disk when the power went, or that was copied from elsewhere, does not pass. `generation`
   counts the inodes that data_<index> has had; it only tells readers to map anew and is not part of the check. */
typedef struct {
    uint64_t sequence, size, hash, check, generation;
    uint8_t pad[24];
} mmapds_record;

typedef struct {
    uint64_t pins[2];
    uint64_t incarnation;
    uint64_t pid;
    uint8_t pad[96]; /* 128 bytes: the prefetcher fetches cache lines in pairs */
} mmapds_slot;

typedef struct {
    mmapds_header header;
    uint64_t sequence;
    uint8_t commit_pad[56];
    mmapds_record records[2];
    uint32_t waiters;
    uint8_t waiters_pad[60];
    uint64_t in_use[MMAPDS_SLOT_WORDS];
    uint8_t rest[3704];
    uint64_t sentinel;
    mmapds_slot slots[MMAPDS_SLOTS];
} mmapds_sync;

_Static_assert(offsetof(mmapds_sync, sequence) == 4096, "sync");
_Static_assert(offsetof(mmapds_sync, records) == 4160, "sync");
_Static_assert(sizeof(mmapds_record) == 64, "sync");
_Static_assert(offsetof(mmapds_sync, waiters) == 4288, "sync");
_Static_assert(offsetof(mmapds_sync, in_use) == 4352, "sync");
_Static_assert(offsetof(mmapds_sync, sentinel) == 8184, "sync");
_Static_assert(offsetof(mmapds_sync, slots) == 8192, "sync");
_Static_assert(sizeof(mmapds_slot) == 128, "sync");
_Static_assert(sizeof(mmapds_sync) == 139264, "sync");

/* Word arithmetic, not a hash of bytes: the payload's hash is xxh3, computed outside every transition. */
static inline uint64_t mmapds_mix(uint64_t acc, uint64_t word)
{
    acc = (acc ^ word) * 0x9e3779b97f4a7c15ULL;
    return acc ^ (acc >> 32);
}

static inline uint64_t mmapds_mix_identity(uint64_t acc, const uint8_t identity[16])
{
    uint64_t low, high;
    __builtin_memcpy(&low, identity, 8);
    __builtin_memcpy(&high, identity + 8, 8);
    return mmapds_mix(mmapds_mix(acc, low), high);
}

static inline uint64_t mmapds_record_check(uint64_t sequence, uint64_t size, uint64_t hash, const uint8_t identity[16])
{
    uint64_t acc = mmapds_mix(mmapds_mix(mmapds_mix(0x6d6d61706473ULL, sequence), size), hash);
    return mmapds_mix_identity(acc, identity);
}

typedef struct {
    uint64_t cells_size, names_size, zero, check;
} mmapds_extent;

typedef struct {
    uint64_t state, check;
    uint8_t length;
    uint8_t name[MMAPDS_NAME];
} mmapds_entry;

typedef struct {
    mmapds_header header;
    uint64_t names, changes;
    uint8_t names_pad[48];
    uint64_t removing, returning, value, how;
    uint8_t changing_pad[32];
    uint8_t rest[384];
    mmapds_extent extents[MMAPDS_EXTENTS];
} mmapds_counters;

_Static_assert(offsetof(mmapds_counters, names) == 4096, "counters");
_Static_assert(offsetof(mmapds_counters, changes) == 4104, "counters");
_Static_assert(offsetof(mmapds_counters, removing) == 4160, "counters");
_Static_assert(offsetof(mmapds_counters, how) == 4184, "counters");
_Static_assert(offsetof(mmapds_counters, extents) == 4608, "counters");
_Static_assert(sizeof(mmapds_extent) == 32, "counters");
_Static_assert(sizeof(mmapds_counters) == 8192, "counters");
_Static_assert(offsetof(mmapds_entry, length) == 16, "counters");
_Static_assert(offsetof(mmapds_entry, name) == 17, "counters");
_Static_assert(sizeof(mmapds_entry) == 272, "counters");

/* No flip of one bit makes one of another. */
#define MMAPDS_LIVE 0x202020206576696cULL    /* "live    " */
#define MMAPDS_REMOVED 0x206465766f6d6572ULL /* "removed " */
#define MMAPDS_DAMAGED 0x20646567616d6164ULL /* "damaged " */

/* A number below 2^32 in one word, which damage does not turn into another: with a check in its upper half; 0 is 0. */
static inline uint64_t mmapds_count(uint64_t number, const uint8_t identity[16])
{
    return number ? number | mmapds_mix_identity(mmapds_mix(0x636f756e74ULL, number), identity) << 32 : 0;
}

/* Never 0, which says that there is no such extent. */
static inline uint64_t mmapds_extent_check(uint64_t number, uint64_t cells_size, uint64_t names_size,
                                           const uint8_t identity[16])
{
    uint64_t acc = mmapds_mix(mmapds_mix(mmapds_mix(0x657874656e74ULL, number), cells_size), names_size);
    acc = mmapds_mix_identity(acc, identity);
    return acc ? acc : 1;
}

/* Over the length and the name, as words, and what binds them: a name of another number or file does not pass. */
static inline uint64_t mmapds_entry_check(const mmapds_entry *entry, uint64_t number, const uint8_t identity[16])
{
    uint64_t acc = mmapds_mix(0x6e616d65ULL, number), word;
    for (unsigned at = 0; at < 1U + entry->length; at += 8) {
        __builtin_memcpy(&word, (const uint8_t *)entry + 16 + at, 8);
        acc = mmapds_mix(acc, word);
    }
    return mmapds_mix_identity(acc, identity);
}

/* ---- queue --------------------------------------------------------------------------------------------------- */

enum {
    MMAPDS_HOLDERS = 1024,
    MMAPDS_UNDO = 256,
    MMAPDS_ITEM_BITS = 40, /* of a payload's size */
};

#define MMAPDS_DELAYED 1U
#define MMAPDS_COMPRESSED 2U
#define MMAPDS_END 4U

enum { /* what has become of an item, as its record tells the next boot */
    MMAPDS_ITEM_NEW = 1,
    MMAPDS_ITEM_CLAIMED = 2,
    MMAPDS_ITEM_RETURNED = 3,
    MMAPDS_ITEM_DONE = 4,
};

typedef struct {
    uint64_t check, hash, order, extent, born;
    uint64_t state, wall, wait, place;
    uint64_t due, delay; /* with MMAPDS_DELAYED; else the payload begins here */
} mmapds_record_item;

#define MMAPDS_ITEM_HEAD offsetof(mmapds_record_item, due)

/* An item that is not where it was put any more, or not yet: claimed, delayed, or returned. References are numbers from 1
   on; 0 is none. `cells` are one cell each of two heaps, which have nothing to do with this entry: timed and ready. */
typedef struct {
    uint64_t position, sequence, size;
    uint64_t due;                              /* CLOCK_BOOTTIME: the delay, or the lease, ends */
    uint64_t place, stamp;                     /* order among those that are ready */
    uint64_t fence;                            /* of the claim, or 0 */
    uint32_t segment_previous, segment_next;   /* those of the same segment */
    uint32_t own_previous, own_next;           /* those of the same holder; own_next: the next free one */
    uint32_t holder, attempts;
    uint32_t heap_at, kind;                    /* where in its heap (from 1 on) */
    uint32_t cells[2];
} mmapds_held;

typedef struct {
    uint64_t token;   /* of the handle (lockword.pyx); 0: nobody */
    uint64_t owing;   /* items that it got, and has not called task_done for */
    uint64_t claims;  /* its last one's entry */
    uint64_t claimed; /* how many */
    uint64_t pid;
    uint8_t pad[24];
} mmapds_holder;

typedef struct {
    uint32_t count, sleepers;
    uint8_t pad[56];
} mmapds_event;

typedef struct {
    mmapds_header header;
    uint64_t put_lock, tail, tail_sequence, saved_tail, saved_sequence, epoch;
    uint8_t put_pad[80];
    uint64_t take_lock, head, head_sequence, changes, logged;
    uint64_t finished; /* number of a segment whose name is to go */
    uint8_t take_pad[80];
    uint64_t capacity;      /* entries that the file has */
    uint64_t used;          /* how many have ever been used */
    uint64_t free;          /* the first free one of these */
    uint64_t heaps[2];      /* how many are in the heaps: timed (delayed items and leases), ready */
    uint64_t leased;        /* of the timed, how many are leases */
    uint64_t claimed;
    uint64_t waiting_bytes; /* payload of what is delayed or ready */
    uint64_t held;          /* an entry of the head's segment */
    uint64_t fences, stamps;
    uint64_t holders;       /* how many slots have ever been used */
    uint8_t index_pad[32];
    uint64_t tallies[16];
    mmapds_event events[4];
    uint64_t shutdowns, immediate, looked;
    uint8_t common_pad[40];
    uint8_t rest[3264];
    struct { uint64_t offset, value; } undo[MMAPDS_UNDO];
    mmapds_holder slots[MMAPDS_HOLDERS];
    uint8_t rest2[4088];
    uint64_t sentinel;
    mmapds_held entries[];
} mmapds_queue;

_Static_assert(MMAPDS_ITEM_HEAD == 72 && sizeof(mmapds_record_item) == 88, "item");
_Static_assert(sizeof(mmapds_held) == 96 && offsetof(mmapds_held, cells) == 88, "queue");
_Static_assert(sizeof(mmapds_holder) == 64, "queue");
_Static_assert(offsetof(mmapds_queue, put_lock) == 4096, "queue");
_Static_assert(offsetof(mmapds_queue, take_lock) == 4224, "queue");
_Static_assert(offsetof(mmapds_queue, capacity) == 4352, "queue");
_Static_assert(offsetof(mmapds_queue, tallies) == 4480, "queue");
_Static_assert(offsetof(mmapds_queue, events) == 4608, "queue");
_Static_assert(offsetof(mmapds_queue, shutdowns) == 4864, "queue");
_Static_assert(offsetof(mmapds_queue, undo) == 8192, "queue");
_Static_assert(offsetof(mmapds_queue, slots) == 12288, "queue");
_Static_assert(offsetof(mmapds_queue, sentinel) == 81912, "queue");
_Static_assert(sizeof(mmapds_queue) == 81920, "queue");

/* Words in a segment's header page, from 2304 on, for durability "power": changes made, changes known to be on the disk,
   the lock word of who is syncing, and how many changes the last sync was for. */
typedef struct {
    uint64_t dirtied, synced, lock, group;
} mmapds_segment_words;

static inline mmapds_segment_words *mmapds_words_of(char *segment) { return (mmapds_segment_words *)(segment + 2304); }

static inline uint64_t mmapds_queue_key(const uint8_t identity[16]) { return mmapds_mix_identity(0x7175657565ULL, identity); }

/* Binds a record to its queue and position. The products do not wait for each other: this is in every put and get. */
static inline uint64_t mmapds_item_check(const mmapds_record_item *item, uint64_t position, uint64_t key)
{
    uint64_t a = (item->hash ^ key) * 0x9e3779b97f4a7c15ULL, b = (item->order + key) * 0xc2b2ae3d27d4eb4fULL;
    uint64_t c = (item->extent ^ position << 20) * 0x165667b19e3779f9ULL, d = (item->born + position) * 0xd6e8feb86659fd93ULL;
    if (item->order & MMAPDS_DELAYED)
        d += mmapds_mix(item->due, item->delay);
    return mmapds_mix(a ^ (b << 31 | b >> 33), c + (d << 17 | d >> 47));
}

/* The word that says what has become of an item; the check in its upper half covers the three words behind it, if they
   are not all 0. */
static inline uint64_t mmapds_item_state(unsigned what, uint32_t attempts, const uint64_t after[3], uint64_t position, uint64_t key)
{
    uint64_t number = what | (uint64_t)(attempts & 0xfffffff) << 4;
    uint64_t more = after[0] * 3 + after[1] * 5 + after[2] * 7;
    if (more)
        more = mmapds_mix(mmapds_mix(mmapds_mix(key, after[0]), after[1]), after[2]);
    return number | mmapds_mix((number ^ key) * 0xc2b2ae3d27d4eb4fULL, position + more) << 32;
}

/* ---- snapshot map -------------------------------------------------------------------------------------------- */

enum {
    MMAPDS_KEY = 65536,      /* bytes in a key, at most */
    MMAPDS_BLOCK = 65536,    /* bytes under one sum */
    MMAPDS_GUIDED = 16,      /* records for each entry of the guide */
    MMAPDS_BUCKET = 8,       /* entries in a bucket of the table: a cache line */
    MMAPDS_LAYERS = 12,      /* in a manifest, at most */
};

#define MMAPDS_MANIFEST 0x74736566696e616dULL /* "manifest" */

#define MMAPDS_PAIR 0x80000000U /* in every record: zeros are none */
#define MMAPDS_GONE 0x40000000U
#define MMAPDS_EXPIRES 0x20000000U
#define MMAPDS_LONG 0x10000000U
#define MMAPDS_KEY_BITS 0xfffffU

typedef struct {
    uint64_t magic, number, entries, keys, clock;
    uint8_t boot_id[16];
    uint64_t delta;
    uint8_t delta_identity[16];
    uint64_t delta_end, layers;
} mmapds_manifest;

typedef struct {
    uint64_t number;
    uint8_t identity[16];
    uint64_t records, bytes, entries;
} mmapds_manifest_layer;

typedef struct {
    uint64_t prefix, offset;
} mmapds_guide;

typedef struct {
    mmapds_header header;
    uint64_t written;
    uint8_t rest[4088];
    uint32_t heads[];
} mmapds_delta;

typedef struct {
    uint32_t next, record;
    uint64_t hash;
} mmapds_node;

typedef struct {
    uint64_t check, hash, size, count, version, entries, zero[2];
    mmapds_node nodes[];
} mmapds_batch;

_Static_assert(sizeof(mmapds_manifest) == 96, "manifest");
_Static_assert(offsetof(mmapds_manifest, delta) == 56, "manifest");
_Static_assert(sizeof(mmapds_manifest_layer) == 48, "manifest");
_Static_assert(offsetof(mmapds_delta, written) == 4096, "delta");
_Static_assert(offsetof(mmapds_delta, heads) == 8192, "delta");
_Static_assert(sizeof(mmapds_node) == 16, "delta");
_Static_assert(offsetof(mmapds_batch, nodes) == 64, "delta");

/* Binds a batch to its place in its delta. */
static inline uint64_t mmapds_batch_check(const mmapds_batch *batch, uint64_t offset, const uint8_t identity[16])
{
    uint64_t acc = mmapds_mix(mmapds_mix(mmapds_mix(0x6261746368ULL, offset), batch->hash), batch->size);
    acc = mmapds_mix(mmapds_mix(mmapds_mix(acc, batch->count), batch->version), batch->entries);
    return mmapds_mix_identity(acc, identity);
}

#define MMAPDS_EMMAP_MAGIC 0xa313050414d4d45ULL /* "EMMAP01\n" */

typedef struct {
    uint64_t magic, count;
} mmapds_emmap;

/* The mmap-sync crate's state file (<prefix>_state): 16 bytes, no header. The version word is index (1 bit), size (39),
   checksum (24); 0 means that nothing was written. */
typedef struct {
    uint64_t version;
    uint32_t readers[2];
} mmapds_crate_state;

_Static_assert(sizeof(mmapds_crate_state) == 16, "mmap-sync state");

/* Bytes of a file whose ranges are locked (open-file-description locks), never read. */
#define MMAPDS_LOCK_OPEN 0          /* initialise, recover, register */
#define MMAPDS_LOCK_WRITER 1
#define MMAPDS_LOCK_SLOT 64         /* + slot: this handle is alive */
#define MMAPDS_LOCK_TOKEN (1LL << 62) /* + token: this owner of lock words is alive */

#endif
