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
