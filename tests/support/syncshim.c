/* Preloaded into a process under test: before each call that makes something durable, or that changes a name, it says
   so on one descriptor and waits on another for an answer: 0 to go on, or the errno with which the call is to fail.

   A message is one line, "CALL A B"; the answer is one byte. Descriptors come in SHIM_SAY and SHIM_HEAR. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int ask(const char *text, int length)
{
    const char *say = getenv("SHIM_SAY"), *hear = getenv("SHIM_HEAR");
    unsigned char answer;
    if (!say || !hear)
        return 0;
    if (write(atoi(say), text, length) != length || read(atoi(hear), &answer, 1) != 1)
        _exit(99);
    return answer;
}

#define ASK(...)                                                    \
    do {                                                            \
        char asked_[9000];                                          \
        int said_ = snprintf(asked_, sizeof asked_, __VA_ARGS__);   \
        int failed_ = ask(asked_, said_);                           \
        if (failed_) {                                              \
            errno = failed_;                                        \
            return -1;                                              \
        }                                                           \
    } while (0)

int msync(void *start, size_t length, int flags)
{
    ASK("msync %lu %lu\n", (unsigned long)start, (unsigned long)length);
    return ((int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "msync"))(start, length, flags);
}

int fsync(int fd)
{
    ASK("fsync %d 0\n", fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd)
{
    ASK("fdatasync %d 0\n", fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int rename(const char *from, const char *to)
{
    ASK("rename %s %s\n", from, to);
    return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}

int unlink(const char *path)
{
    ASK("unlink %s 0\n", path);
    return ((int (*)(const char *))dlsym(RTLD_NEXT, "unlink"))(path);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    ASK("linkat %s %s\n", from, to);
    return ((int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat"))(from_fd, from, to_fd, to, flags);
}
