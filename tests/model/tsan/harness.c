/* The native transitions under ThreadSanitizer: threads instead of processes, one anonymous shared mapping, the package's
   own headers, unchanged.

   WHAT IT SEES. TSan keeps, for each load and store, which others it is ordered behind, by the atomic operations with the
   memory orders that the code has, not by those that the machine happens to give: on x86-64 it finds a store that ought
   to be `release` and is relaxed. So a run without a report says: in the interleavings that occurred, each plain access of
   shared memory was ordered behind each conflicting one by the atomics that docs/memory-model.md names as its partners.
   Besides, all values are checked: no torn value, FIFO for each producer, each item once, each key as its manifest says.

   WHAT IT DOES NOT SEE, and what does. Only interleavings that occur: the models in ../promela visit all, and put deaths
   between any two stores, but suppose that all agree on one order of stores. TSan checks the orders which make that a fair
   supposition. It knows no fences (gcc says so with -Wtsan), so where order comes of a fence alone it would see a race that
   is none: those are the optimistic copies below, and the undo log of one who died, whose stores the next owner reads behind
   the kernel's lock of a byte. A death is here a thread that ends with the lock held and is joined; its kill between two
   stores of the log is the models' and the stepping tests' part. Whether a compiler or a processor may reorder two relaxed
   stores with a release fence in between is not asked here: the standard says no.

   EXCUSED. `racy_copy`, and nothing else: it is not instrumented. Two readers copy while somebody may write, and throw the
   copy away unless a second look proves that nobody did:
     - a Synchronizer's reader without a slot (LeftRight.copy): V, copy, acquire fence, V again;
     - who looks at a queue's index without its lock (queue_begin_look, queue_end_look).
   Both checks stay checked: a copy that is kept is compared with what it must be. By the letter of C11 such a race is
   undefined whatever becomes of the copy; every sequence lock lives with that, and loads word by word, as here.

   TEETH. Each BROKEN_ macro takes one order away, and TSan must report a race in that scenario:
     BROKEN_PIN    a reader announces itself and does not look again (mmap-sync)
     BROKEN_LOCK   the lock word is released without release order
     BROKEN_TAIL   the tail of a queue is stored relaxed
     BROKEN_HEAD   the head of a delta's chain is stored relaxed

   usage: harness pin|copy|lock|fifo|queue|delta [rounds] */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "atomics.h"
#include "kernel.h"
#include "layout.h"
#include "leftright.h"
#ifdef BROKEN_LOCK
#define exchange_seq_cst_u64(p, v) __atomic_exchange_n(p, v, __ATOMIC_RELAXED)
#endif
#include "lockword.h"
#ifdef BROKEN_TAIL
#define store_release_u64 store_relaxed_u64
#endif
#include "queue.h"
#ifdef BROKEN_HEAD
#undef __ATOMIC_RELEASE
#define __ATOMIC_RELEASE __ATOMIC_RELAXED
#endif
#include "snapshot.h"

enum { THREADS = 3, WORDS = 64 };

static uint64_t rounds = 2000;
static uint32_t nothing_lost;
static int lock_file;       /* bytes of it are locked, nothing else */
static uint64_t over;       /* the writers are through */
static uint64_t seen;       /* how often a reader found another version than the time before, in all */

#define CHECK(truth)                                                                                                     \
    do {                                                                                                                 \
        if (!(truth)) {                                                                                                  \
            fprintf(stderr, "%s:%d: wrong: %s\n", __FILE__, __LINE__, #truth);                                           \
            _exit(2);                                                                                                    \
        }                                                                                                                \
    } while (0)

static void *shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* See EXCUSED above. No call in it: TSan would see what memcpy does. */
__attribute__((no_sanitize("thread"), noinline)) static void racy_copy(uint64_t *to, const uint64_t *from, size_t words)
{
    for (size_t i = 0; i < words; i++)
        to[i] = *(const volatile uint64_t *)&from[i];
}

typedef void *(*work)(void *);

static struct {
    pthread_barrier_t together;
    work first, others;
} start;

static void *begin(void *number)
{
    pthread_barrier_wait(&start.together); /* or the first would be through before the second exists */
    return (number ? start.others : start.first)(number);
}

static void all(work first, work others, int count)
{
    pthread_t threads[16];
    pthread_barrier_init(&start.together, NULL, count);
    start.first = first;
    start.others = others;
    for (intptr_t i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, begin, (void *)i) == 0);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start.together);
}

/* ---- the Synchronizer ----------------------------------------------------------------------------------------------- */

static mmapds_sync *sync_;
static uint64_t *values[2];

static void *sync_writer(void *unused)
{
    (void)unused;
    for (uint64_t v = 1; v <= rounds; v++) {
        uint64_t *target = values[v & 1];
        while (leftright_pinned(sync_, v & 1, 0) >= 0) /* no grace here: nobody is robbed */
            sched_yield();
        fence_seq_cst(); /* as writer.pyx does: V before the first byte */
        for (int i = 0; i < WORDS; i++)
            target[i] = v * 1000 + i; /* plain */
        leftright_publish(sync_, v, sizeof(uint64_t) * WORDS, v * 7);
        if (v % 4 == 0)
            sched_yield();
    }
    store_seq_cst_u64(&over, 1);
    return NULL;
}

static int pin(uint64_t *pins, uint64_t *version)
{
#ifdef BROKEN_PIN
    *version = load_seq_cst_u64(&sync_->sequence);
    if (!*version)
        return -1;
    kernel_sleep_ns(100000); /* two writes */
    store_seq_cst_u64(&pins[*version & 1], pins[*version & 1] + 1);
    return (int)(*version & 1);
#else
    return leftright_pin(sync_, pins, version);
#endif
}

static void *sync_reader(void *number)
{
    int slot = (int)(intptr_t)number;
    uint64_t *pins = sync_->slots[slot].pins, version, last = 0, read = 0;
    leftright_attach(sync_, slot, slot);
    while (!load_seq_cst_u64(&over) || read < 10) {
        int index = pin(pins, &version);
        if (index < 0)
            continue;
        const mmapds_record *record = &sync_->records[index];
        const uint64_t *value = values[index];
        CHECK(version >= last);
        CHECK(record->sequence == version && record->hash == version * 7 && record->size == sizeof(uint64_t) * WORDS);
        CHECK(record->check == mmapds_record_check(version, record->size, record->hash, sync_->header.identity));
        for (int i = 0; i < WORDS; i++)
            CHECK(value[i] == version * 1000 + i); /* plain */
        if (++read % 16 == 0)
            sched_yield(); /* pinned */
        leftright_unpin(pins, index);
        if (last != version)
            __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
        last = version;
    }
    leftright_detach(sync_, slot);
    return NULL;
}

/* Without a slot: LeftRight.copy. */
static void *sync_copier(void *unused)
{
    uint64_t copy[WORDS], last = 0, kept = 0;
    (void)unused;
    while (!load_seq_cst_u64(&over) || !kept) {
        uint64_t version = load_seq_cst_u64(&sync_->sequence);
        const mmapds_record *record = &sync_->records[version & 1];
        uint64_t sequence = load_relaxed_u64(&record->sequence), size = load_relaxed_u64(&record->size);
        if (!version)
            continue;
        fence_acquire();
        if (load_seq_cst_u64(&sync_->sequence) != version)
            continue;
        CHECK(sequence == version && size == sizeof(copy));
        racy_copy(copy, values[version & 1], WORDS);
        fence_acquire(); /* pairs with the fence in sync_writer */
        if (load_seq_cst_u64(&sync_->sequence) != version)
            continue;
        for (int i = 0; i < WORDS; i++)
            CHECK(copy[i] == version * 1000 + i);
        CHECK(version >= last);
        if (last != version)
            __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
        last = version;
        kept++;
    }
    return NULL;
}

/* ---- the lock word -------------------------------------------------------------------------------------------------- */

static uint64_t *word, *guarded; /* plain, under the lock */

static int own_lock_file(uint64_t token)
{
    int fd = kernel_reopen(lock_file); /* an open file description of its own, as each handle has */
    CHECK(fd >= 0 && kernel_lock(fd, F_WRLCK, lockword_byte(token), 1, 0) == 0);
    return fd;
}

static uint64_t token_of(intptr_t number) { return (uint64_t)(number + 1) << 32 | (uint64_t)(number + 1); }

static int lock(uint64_t *at, uint64_t token, int fd)
{
    int status = lockword_try(at, token, 0);
    for (int waited = 0; status == LOCK_BUSY; waited = 1) {
        status = lockword_press(at, token, fd, waited);
        if (status == LOCK_BUSY)
            lockword_sleep(at, 50000000);
    }
    return status;
}

static void *locker(void *number)
{
    uint64_t token = token_of((intptr_t)number);
    int fd = own_lock_file(token);
    for (uint64_t i = 0; i < rounds; i++) {
        int status = lock(word, token, fd);
        if (status == LOCK_TAKEN_DIRTY) { /* repair: both are equal while nobody is inside */
            guarded[1] = guarded[0];
            guarded[2]++;
        }
        CHECK(guarded[0] == guarded[1]);
        guarded[0]++;
        guarded[1]++;
        lockword_release(word, 0);
    }
    close(fd);
    return NULL;
}

static void *dies_inside(void *number)
{
    uint64_t token = token_of((intptr_t)number + 100);
    int fd = own_lock_file(token);
    lock(word, token, fd);
    guarded[0]++; /* and not the other one */
    close(fd);    /* the kernel drops its byte */
    return NULL;
}

/* ---- the queue ------------------------------------------------------------------------------------------------------ */

enum { SEGMENT = 16384, SEGMENTS = 256, ENTRIES = 4096, PRODUCERS = 2, TAKERS = 2, ITEM = 5 };

static mmapds_queue *queue;
static queue_segment segments[SEGMENTS];
static uint8_t *taken;  /* by item: how often it was ended; by whoever ended it */
static uint64_t ended;
static int claiming;    /* else all only get */

static void view_of(queue_view *view, intptr_t number)
{
    memset(view, 0, sizeof(*view));
    view->control = queue;
    view->lost = &nothing_lost;
    view->capacity = ENTRIES;
    view->segment_size = SEGMENT;
    view->key = mmapds_queue_key(queue->header.identity);
    view->token = token_of(number);
    view->locks = own_lock_file(view->token);
    view->directory = -1;
    view->segments = segments;
    view->count = SEGMENTS;
}

static void *producer(void *number)
{
    queue_view view;
    uint64_t payload[ITEM], position;
    view_of(&view, (intptr_t)number);
    for (uint64_t i = 0; i < rounds; i++) {
        mmapds_record_item prepared = {.born = i};
        int status = QUEUE_BUSY;
        for (int k = 0; k < ITEM; k++)
            payload[k] = ((uint64_t)(intptr_t)number * rounds + i) * 10 + k;
        while (status == QUEUE_BUSY)
            status = queue_put(&view, (char *)payload, sizeof(payload), &prepared, &position, 1);
        CHECK(status == QUEUE_DONE);
    }
    close(view.locks);
    return NULL;
}

static uint64_t finish(const uint64_t *payload, uint64_t *last)
{
    uint64_t item = payload[0] / 10;
    for (int k = 0; k < ITEM; k++)
        CHECK(payload[k] == item * 10 + k);
    CHECK(item < PRODUCERS * rounds);
    CHECK(__atomic_add_fetch(&taken[item], 1, __ATOMIC_RELAXED) == 1);
    if (last) { /* FIFO for each producer, if nothing was ever returned */
        CHECK(last[item / rounds] < item + 1);
        last[item / rounds] = item + 1;
    }
    __atomic_add_fetch(&ended, 1, __ATOMIC_RELAXED);
    return item;
}

static void *taker(void *number)
{
    queue_view view;
    queue_item item = {0};
    uint64_t payload[ITEM], last[PRODUCERS] = {0}, turns = 0;
    int status, claims = claiming && (intptr_t)number == PRODUCERS; /* the first of them; the other only gets */
    view_of(&view, (intptr_t)number);
    do
        status = queue_register(&view, (uint64_t)(intptr_t)number, 1);
    while (status == QUEUE_BUSY);
    CHECK(status == QUEUE_DONE && view.holder);
    while (__atomic_load_n(&ended, __ATOMIC_RELAXED) < PRODUCERS * rounds) {
        int claim = claims && turns++ % 2;
        status = queue_take(&view, claim ? QUEUE_CLAIM : QUEUE_GET, 0, (char *)payload, sizeof(payload), &item, 1);
        if (status == QUEUE_BUSY)
            continue;
        if (status == QUEUE_EMPTY && !claiming) { /* polls: what orders it behind a put is the tail alone */
            sched_yield();
            continue;
        }
        if (status == QUEUE_EMPTY) {
            uint32_t seen = queue_announce(&view, QUEUE_ITEMS);
            if (queue_waiting(queue) == 0)
                queue_sleep(&view, QUEUE_ITEMS, seen, 1000000);
            continue;
        }
        CHECK(status == QUEUE_DONE);
        if (!claim) {
            finish(payload, claiming ? NULL : last); /* what was returned comes again, out of turn */
            continue;
        }
        memcpy(payload, item.payload, sizeof(payload)); /* plain, without the lock: the claim keeps it */
        int back = turns % 8 == 1;
        do
            status = back ? queue_nack(&view, &item, 0, 0, 1) : queue_ack(&view, &item, 0, 1);
        while (status == QUEUE_BUSY);
        CHECK(status == QUEUE_DONE);
        if (!back)
            finish(payload, NULL);
    }
    queue_wake(&view, QUEUE_ITEMS, INT_MAX);
    close(view.locks);
    return NULL;
}

/* What is said to be of one moment must be: each entry is claimed, waits, or is free, as the counts say. */
static void *looker(void *unused)
{
    enum { COPIED = sizeof(mmapds_queue) / 8, FIRST = 64 };
    uint64_t *copy = malloc(sizeof(mmapds_queue) + FIRST * sizeof(mmapds_held)), changes;
    mmapds_queue *then = (mmapds_queue *)copy;
    (void)unused;
    while (__atomic_load_n(&ended, __ATOMIC_RELAXED) < PRODUCERS * rounds) {
        uint64_t next, tail = queue_tail(queue, &next), head = 0;
        CHECK(queue_waiting(queue) >= -(int64_t)ENTRIES && tail >= MMAPDS_PAGE);
        if (queue_begin_look(queue, &changes)) {
            racy_copy(copy, (uint64_t *)queue, COPIED + FIRST * sizeof(mmapds_held) / 8);
            if (queue_end_look(queue, changes) && then->used <= FIRST) {
                uint64_t claimed = 0, waiting = 0, bytes = 0;
                head = then->head;
                for (uint64_t i = 0; i < then->used; i++) {
                    claimed += then->entries[i].kind == QUEUE_CLAIMED;
                    waiting += then->entries[i].kind == QUEUE_WAITING;
                    if (then->entries[i].kind == QUEUE_WAITING)
                        bytes += then->entries[i].size;
                }
                CHECK(claimed == then->claimed && waiting == then->heaps[QUEUE_READY] && bytes == then->waiting_bytes);
                CHECK(head >= MMAPDS_PAGE);
            }
        }
        sched_yield();
    }
    free(copy);
    return NULL;
}

static void *queue_thread(void *number)
{
    intptr_t n = (intptr_t)number;
    return n < PRODUCERS ? producer(number) : n < PRODUCERS + TAKERS ? taker(number) : looker(number);
}

/* ---- the delta of a snapshot map --------------------------------------------------------------------------------------- */

enum { BUCKETS = 4, KEYS = 8, BATCH = 2 };

static snap_delta delta;
static char *delta_file;
static uint64_t *manifest; /* [0] its sequence, [1 + 2 * (version & 63)] end and version, as a copy of it would say */

static uint64_t hash_of_key(uint64_t key) { return key * 0x9e3779b97f4a7c15ULL >> 8; }

static void *delta_writer(void *unused)
{
    mmapds_delta *file = (mmapds_delta *)delta_file;
    uint64_t at = delta.start;
    (void)unused;
    for (uint64_t version = 1; version <= rounds; version++) {
        mmapds_batch *batch = (mmapds_batch *)(delta_file + at);
        char *record = (char *)&batch->nodes[BATCH];
        for (int i = 0; i < BATCH; i++) { /* as `append` in snapbuild.pyx */
            uint64_t key = (version * BATCH + i) % KEYS;
            batch->nodes[i].next = 0;
            batch->nodes[i].record = (uint32_t)((record - delta_file) / 8);
            batch->nodes[i].hash = hash_of_key(key);
            record = snap_compose(record, (char *)&key, sizeof(key), sizeof(version), 0, 0);
            memcpy(record, &version, sizeof(version));
            record += sizeof(version);
        }
        at = record - delta_file;
        CHECK(at < delta.size);
        store_seq_cst_u64(&file->written, at);
        for (int i = 0; i < BATCH; i++)
            snap_link((uint32_t *)file->heads, delta.buckets, delta_file,
                      (char *)&batch->nodes[i] - delta_file);
        if (version % 4 == 0)
            sched_yield(); /* linked, and not published */
        store_relaxed_u64(&manifest[1 + (version & 63)], at); /* the Synchronizer's value: it has a scenario of its own */
        store_seq_cst_u64(&manifest[0], version);
    }
    store_seq_cst_u64(&over, 1);
    return NULL;
}

static void *delta_reader(void *number)
{
    uint64_t read = 0, key, found, last = 0;
    snap_record record = {0};
    while (!load_seq_cst_u64(&over) || read < KEYS) {
        uint64_t version = load_acquire_u64(&manifest[0]);
        uint64_t end = version ? load_relaxed_u64(&manifest[1 + (version & 63)]) : delta.start;
        fence_acquire();
        if (load_acquire_u64(&manifest[0]) > version + 32)
            continue; /* the value may have been replaced */
        key = (read++ + (uint64_t)(intptr_t)number) % KEYS;
        /* The newest version not above ours that stored this key. */
        uint64_t wanted = version;
        while (wanted && (wanted * BATCH) % KEYS != key && (wanted * BATCH + 1) % KEYS != key)
            wanted--;
        int status = snap_find_new(&delta, end, hash_of_key(key), (char *)&key, sizeof(key), &record);
        CHECK(status == (wanted ? SNAP_FOUND : SNAP_NONE));
        if (wanted) {
            memcpy(&found, record.value, sizeof(found));
            CHECK(record.value_size == sizeof(found) && found == wanted);
        }
        if (last != version)
            __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED);
        last = version;
        if (read % 32 == 0)
            sched_yield();
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------------------------ */

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    char name[] = "/tmp/mmapds-tsan-XXXXXX";
    if (count > 2)
        rounds = strtoull(arguments[2], NULL, 10);
    lock_file = mkstemp(name);
    CHECK(lock_file >= 0);
    unlink(name);
    if (!strcmp(what, "pin") || !strcmp(what, "copy")) {
        sync_ = shared(sizeof(*sync_));
        values[0] = shared(sizeof(uint64_t) * WORDS);
        values[1] = shared(sizeof(uint64_t) * WORDS);
        all(sync_writer, !strcmp(what, "pin") ? sync_reader : sync_copier, THREADS);
        printf("%s: %llu versions, %llu seen\n", what, (unsigned long long)sync_->sequence, (unsigned long long)seen);
    } else if (!strcmp(what, "lock")) {
        word = shared(4096);
        guarded = shared(4096);
        all(locker, locker, THREADS);
        CHECK(guarded[0] == THREADS * rounds && guarded[2] == 0);
        all(dies_inside, NULL, 1);
        all(locker, locker, THREADS);
        CHECK(guarded[0] == 2 * THREADS * rounds + 1 && guarded[2] == 1 && *word == 0);
        printf("lock: %llu turns, 1 takeover\n", (unsigned long long)guarded[0]);
    } else if (!strcmp(what, "queue") || !strcmp(what, "fifo")) {
        claiming = !strcmp(what, "queue");
        queue = shared(sizeof(*queue) + ENTRIES * sizeof(mmapds_held));
        char *file = shared((size_t)SEGMENT * SEGMENTS);
        for (int i = 0; i < SEGMENTS; i++)
            segments[i] = (queue_segment){(uint64_t)i * SEGMENT, SEGMENT, file + (size_t)i * SEGMENT, &nothing_lost};
        queue->head = queue->tail = MMAPDS_PAGE;
        queue->epoch = 1;
        queue->capacity = ENTRIES;
        taken = calloc(PRODUCERS * rounds, 1);
        CHECK(PRODUCERS * rounds * (MMAPDS_ITEM_HEAD + sizeof(uint64_t) * ITEM) < (uint64_t)SEGMENTS * (SEGMENT - 4500));
        all(queue_thread, queue_thread, PRODUCERS + TAKERS + 1);
        for (uint64_t i = 0; i < PRODUCERS * rounds; i++)
            CHECK(taken[i] == 1);
        CHECK(queue->claimed == 0 && queue->put_lock == 0 && queue->take_lock == 0 && queue->logged == 0);
        printf("%s: %llu items\n", what, (unsigned long long)ended);
    } else if (!strcmp(what, "delta")) {
        delta.size = 2 * MMAPDS_PAGE + rounds * 256 + 8192;
        delta_file = shared(delta.size);
        delta.base = delta.nodes = delta_file;
        delta.room = delta.size;
        delta.heads = ((mmapds_delta *)delta_file)->heads;
        delta.buckets = BUCKETS;
        delta.start = 2 * MMAPDS_PAGE + 64;
        manifest = shared(4096);
        all(delta_writer, delta_reader, THREADS);
        printf("delta: %llu commits, %llu seen\n", (unsigned long long)manifest[0], (unsigned long long)seen);
    } else {
        fprintf(stderr, "usage: harness pin|copy|lock|fifo|queue|delta [rounds]\n");
        return 64;
    }
    return 0;
}
