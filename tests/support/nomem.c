/* Preloaded into a process under test: the n-th call of malloc, calloc or realloc that the package's own native modules
   make finds no memory. What the interpreter allocates is left alone (for that there is _testcapi). */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <stddef.h>
#include <string.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static struct { char *start, *end; } module[64];
static int modules, fail_at, calls;

static int note(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    if (!strstr(info->dlpi_name, "/mmapds/_native/"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum && modules < 64; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            module[modules].start = (char *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
            module[modules].end = module[modules].start + info->dlpi_phdr[i].p_memsz;
            modules++;
        }
    return 0;
}

/* From now on; 0: none fails. Returns how many such calls there were since it was told last. */
int nomem_arm(int at)
{
    int before = calls;
    modules = 0;
    dl_iterate_phdr(note, NULL);
    calls = 0;
    fail_at = at;
    return before;
}

static int none(void *caller)
{
    for (int i = 0; i < modules; i++)
        if ((char *)caller >= module[i].start && (char *)caller < module[i].end)
            return ++calls == fail_at ? (errno = ENOMEM) : 0;
    return 0;
}

void *malloc(size_t size) { return none(__builtin_return_address(0)) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return none(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return none(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size); }
