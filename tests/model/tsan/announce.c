/* queue_announce, with a waker of an older item at each point of it.

   Somebody has published an item, found `sleepers` set, and is about to take the mark away, raise `count` and wake. The item
   has been taken by others meanwhile. Now we announce that we are about to sleep; the late waker comes between any two of
   our loads and stores. Afterwards it must hold that we do not sleep (`count` is not what we have seen), or that the next who
   puts something sees us (`sleepers`). The header is included as it is, with its loads and stores counted. */
#define _GNU_SOURCE
#include "kernel.h"
#include "lockword.h"

static int at, now;
static void wake_late(void);

static void step(void)
{
    if (now++ == at)
        wake_late();
}

static uint32_t counted_load(const uint32_t *word)
{
    step();
    return load_seq_cst_u32(word);
}

static void counted_store(uint32_t *word, uint32_t value)
{
    step();
    store_seq_cst_u32(word, value);
}

#define load_seq_cst_u32 counted_load
#define store_seq_cst_u32 counted_store
#include "queue.h"
#undef load_seq_cst_u32
#undef store_seq_cst_u32

static mmapds_queue control;

static void wake_late(void) /* the rest of queue_wake, after it has found the mark */
{
    store_seq_cst_u32(&control.events[QUEUE_ITEMS].sleepers, 0);
    fetch_add_seq_cst_u32(&control.events[QUEUE_ITEMS].count, 1);
}

int main(void)
{
    queue_view view = {.control = &control};
    int bad = 0;
    for (at = 0; at <= 2; at++) { /* before the first, between the two, after both */
        memset(&control, 0, sizeof(control));
        control.events[QUEUE_ITEMS].sleepers = 1;
        now = 0;
        uint32_t seen = queue_announce(&view, QUEUE_ITEMS);
        if (now != 2) {
            printf("queue_announce has %d loads and stores, this test knows 2\n", now);
            return 2;
        }
        if (at == 2)
            wake_late();
        if (control.events[QUEUE_ITEMS].count == seen && !control.events[QUEUE_ITEMS].sleepers) {
            printf("the waker at point %d: we would sleep, and nobody would wake us\n", at);
            bad = 1;
        }
    }
    return bad;
}
