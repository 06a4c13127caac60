# cython: language_level=3
"""Atomic operations on words of shared memory, the memory order in the name (atomics.h)."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    uint64_t load_relaxed_u64(const uint64_t *p)
    uint64_t load_acquire_u64(const uint64_t *p)
    uint64_t load_seq_cst_u64(const uint64_t *p)
    void store_relaxed_u64(uint64_t *p, uint64_t v)
    void store_release_u64(uint64_t *p, uint64_t v)
    void store_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t fetch_add_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t fetch_sub_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t fetch_and_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t fetch_or_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t fetch_xor_seq_cst_u64(uint64_t *p, uint64_t v)
    uint64_t exchange_seq_cst_u64(uint64_t *p, uint64_t v)
    bint compare_exchange_seq_cst_u64(uint64_t *p, uint64_t *expected, uint64_t desired)
    uint32_t load_relaxed_u32(const uint32_t *p)
    uint32_t load_seq_cst_u32(const uint32_t *p)
    void store_seq_cst_u32(uint32_t *p, uint32_t v)
    uint32_t fetch_add_seq_cst_u32(uint32_t *p, uint32_t v)
    bint compare_exchange_seq_cst_u32(uint32_t *p, uint32_t *expected, uint32_t desired)
    void fence_acquire()
    void fence_seq_cst()
    void load_bytes(void *to, const void *source, size_t size)
    void cpu_relax()
