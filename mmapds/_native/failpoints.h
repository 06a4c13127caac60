/* Named points before every shared store and look, for tests. Not in a release: without MMAPDS_FAILPOINTS this file is
   empty, and no module has a symbol, a string or an instruction of it (tests/crash/test_failpoints.py looks).

   With it, each function of atomics.h that changes a shared word, or orders a look at one, becomes a macro of the same
   name that first says where it is: in which function, which operation on which word, in which line. Who listens is a
   library that tests preload (tests/support/failpoints.c): it counts the points, or at one of them kills the process or
   holds it until it is told to go on. It interposes the system calls too, which need nothing here. The symbol is weak:
   without the library the points are passed by.

   Included at the end of atomics.h, when the functions are defined: in parentheses a name is no macro.

   Prior art: the failpoints of FreeBSD, TiKV and etcd, which are written into the code by hand, and forgotten in the next
   function. Rejected: relaxed loads as points, which loops that spin are made of, and which order nothing. */
#ifndef MMAPDS_FAILPOINTS_H
#define MMAPDS_FAILPOINTS_H

#ifdef MMAPDS_FAILPOINTS

extern int mmapds_failpoint(const char *function, const char *operation, const char *what, int line)
    __attribute__((weak, visibility("default")));

#define MMAPDS_POINT(operation, what) \
    ((void)(mmapds_failpoint && mmapds_failpoint(__func__, operation, what, __LINE__)))

#define store_relaxed_u64(p, v) (MMAPDS_POINT("store_relaxed_u64", #p), (store_relaxed_u64)(p, v))
#define store_release_u64(p, v) (MMAPDS_POINT("store_release_u64", #p), (store_release_u64)(p, v))
#define store_seq_cst_u64(p, v) (MMAPDS_POINT("store_seq_cst_u64", #p), (store_seq_cst_u64)(p, v))
#define store_seq_cst_u32(p, v) (MMAPDS_POINT("store_seq_cst_u32", #p), (store_seq_cst_u32)(p, v))
#define fetch_add_seq_cst_u64(p, v) (MMAPDS_POINT("fetch_add_seq_cst_u64", #p), (fetch_add_seq_cst_u64)(p, v))
#define fetch_sub_seq_cst_u64(p, v) (MMAPDS_POINT("fetch_sub_seq_cst_u64", #p), (fetch_sub_seq_cst_u64)(p, v))
#define fetch_and_seq_cst_u64(p, v) (MMAPDS_POINT("fetch_and_seq_cst_u64", #p), (fetch_and_seq_cst_u64)(p, v))
#define fetch_or_seq_cst_u64(p, v) (MMAPDS_POINT("fetch_or_seq_cst_u64", #p), (fetch_or_seq_cst_u64)(p, v))
#define fetch_xor_seq_cst_u64(p, v) (MMAPDS_POINT("fetch_xor_seq_cst_u64", #p), (fetch_xor_seq_cst_u64)(p, v))
#define fetch_add_seq_cst_u32(p, v) (MMAPDS_POINT("fetch_add_seq_cst_u32", #p), (fetch_add_seq_cst_u32)(p, v))
#define exchange_seq_cst_u64(p, v) (MMAPDS_POINT("exchange_seq_cst_u64", #p), (exchange_seq_cst_u64)(p, v))
#define compare_exchange_seq_cst_u64(p, expected, desired) \
    (MMAPDS_POINT("compare_exchange_seq_cst_u64", #p), (compare_exchange_seq_cst_u64)(p, expected, desired))
#define compare_exchange_seq_cst_u32(p, expected, desired) \
    (MMAPDS_POINT("compare_exchange_seq_cst_u32", #p), (compare_exchange_seq_cst_u32)(p, expected, desired))

#define load_acquire_u64(p) (MMAPDS_POINT("load_acquire_u64", #p), (load_acquire_u64)(p))
#define load_seq_cst_u64(p) (MMAPDS_POINT("load_seq_cst_u64", #p), (load_seq_cst_u64)(p))
#define load_seq_cst_u32(p) (MMAPDS_POINT("load_seq_cst_u32", #p), (load_seq_cst_u32)(p))
#define load_bytes(to, from, size) (MMAPDS_POINT("load_bytes", #from), (load_bytes)(to, from, size))
#define fence_acquire() (MMAPDS_POINT("load fence_acquire", ""), (fence_acquire)())
#define fence_seq_cst() (MMAPDS_POINT("load fence_seq_cst", ""), (fence_seq_cst)())

#endif

#endif
