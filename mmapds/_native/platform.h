/* The one place that says where mmapds runs. Every other header includes this one first, so that a build anywhere else
   stops with this sentence. */
#ifndef MMAPDS_PLATFORM_H
#define MMAPDS_PLATFORM_H

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__)) || !defined(__LP64__) || \
    __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "mmapds needs 64-bit little-endian Linux (x86-64 or aarch64)."
#endif

#endif
