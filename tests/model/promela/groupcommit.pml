/* Shared syncs of the queue, with durability "power": many put, one syncs for all; anybody dies, or the disk refuses.

   What is checked, in every order of the steps: when a put returns, the disk has its item, and that of every position
   before it (else recovery would find a hole before something that was acknowledged). After a sync that failed nobody's
   put returns: what the kernel has forgotten is not taken for written because a later sync succeeds. Nobody is blocked for
   ever.

   An msync is two steps. What was stored before the first is on the disk after the second; what is stored in between is
   not (it may be, which is no worse). If it fails, the kernel takes what it was to write for clean, and tells all others
   who have the file open at their next msync (errseq_t, since Linux 4.13). Names follow the code
   (QueueView.durable, queue_sync_left, queue_put_one); the table is in README-queue-map.md. */

/* The protocol. */
/* run: failing           expect=ok -DPUTTERS=2 -DDEATHS=1 -DERRORS=1 */
/* run: leaving           expect=ok -DPUTTERS=2 -DFULL=1 -DDEATHS=1 -DERRORS=1 */
/* run: three             size=large expect=ok -DPUTTERS=3 */
/* run: three_dying       size=large expect=ok -DPUTTERS=3 -DDEATHS=1 */
/* run: three_failing     size=large expect=ok -DPUTTERS=3 -DERRORS=1 */
/* run: three_leaving     size=large expect=ok -DPUTTERS=3 -DFULL=1 -DDEATHS=1 */

/* Faults. */
/* run: upto_late         expect=error finds="disk[n]" -DPUTTERS=2 -DUPTO_LATE */
/* run: counted_first     size=large expect=error finds="disk[n]" -DPUTTERS=2 -DCOUNTED_FIRST */
/* run: synced_first      size=large expect=error finds="disk[n]" -DPUTTERS=2 -DSYNCED_FIRST */
/* run: left_unsynced     size=large expect=error finds="disk[n]" -DPUTTERS=2 -DFULL=1 -DLEFT_UNSYNCED */
/* run: failure_forgotten size=large expect=error finds="disk[n]" -DPUTTERS=2 -DERRORS=1 -DFAILURE_FORGOTTEN */

/* What holds only with something else. Without the limit of a sleep a wake may be lost: who gets the lock, and finds that
   the sync has been done for him, wakes before another, who found the lock taken, sleeps. It costs that one the limit, 50 ms,
   and no more. And who is killed between a sync that failed and the store of `failed` has told nobody: then it is the
   kernel that tells the others. */
/* run: no_slice          size=large expect=error finds="invalid end state" -DPUTTERS=3 -DNO_SLICE */
/* run: untold            size=large expect=error finds="disk[n]" -DPUTTERS=2 -DERRORS=1 -DDEATHS=1 -DUNTOLD */

#ifndef PUTTERS
#define PUTTERS 3
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef ERRORS
#define ERRORS 0
#endif
#ifndef FULL
#define FULL 100                    /* records in the first segment */
#endif
#define N PUTTERS

byte mem[N], disk[N];               /* the item of a position */
bool clean[N];                      /* the kernel takes it for written: it is not */
byte tail;
byte dirtied[2], synced[2];         /* of the two segments */
byte put_owner, owner[2];           /* of the lock words; ids from 1 on */
bool failed;
bool gone[N + 1], asleep[N + 1];
byte sleeps_on[N + 1];
byte told[N + 1];                   /* this one's next msync of a segment (+ 1) fails, too */
byte deaths = DEATHS, refusals = ERRORS;

#define SEGMENT(p) ((p) >= FULL)
#if DEATHS
#define DIE atomic { deaths > 0 -> deaths--; gone[me] = true; asleep[me] = false; goto end_dead }
#define STEP(what) if :: atomic { what } :: DIE fi
#else
#define STEP(what) atomic { what }
#endif

/* The two halves of an msync of a segment. */
inline sync_begin(segment) {
    n = 0;
    do
    :: n < N -> snap[n] = (SEGMENT(n) == segment && !clean[n] -> mem[n] : 0); n++
    :: else -> n = 0; break
    od
}

inline sync_end(segment) {
    error = told[me] == segment + 1;
    told[me] = 0;
    if
    :: skip
#if ERRORS
    :: !error && refusals > 0 ->
        refusals--;
        error = true;
#ifndef UNTOLD
        n = 0;                      /* the kernel tells everybody who has the file open, once */
        do :: n < N -> n++; if :: n != me -> told[n] = segment + 1 :: else fi :: else -> break od
#endif
#endif
    fi;
    n = 0;
    do
    :: n < N ->
        if
        :: snap[n] && disk[n] != mem[n] -> if :: error -> clean[n] = true :: else -> disk[n] = snap[n] fi
        :: else
        fi;
        snap[n] = 0;
        n++
    :: else -> n = 0; break
    od
}

proctype Putter(byte me) {
    byte p, s, mine, done, upto, n;
    byte snap[N];
    bool error;
#ifdef COUNTED_FIRST
    STEP(dirtied[0]++; mine = dirtied[0]);
#endif
    /* queue_put_one, under put_lock */
    if
    :: atomic { put_owner == 0 -> put_owner = me }
    :: atomic { put_owner != 0 && gone[put_owner] -> put_owner = me }
    fi;
    p = tail;
    s = SEGMENT(p);
    if
    :: p == FULL ->                 /* queue_sync_left: the tail leaves the first segment */
#ifndef LEFT_UNSYNCED
        STEP(sync_begin(0));
        STEP(sync_end(0));
        if :: error -> STEP(failed = true); STEP(put_owner = 0); goto end_dead :: else fi
#else
        skip
#endif
    :: else
    fi;
    STEP(mem[p] = me; clean[p] = false);
    STEP(tail = p + 1);
    STEP(put_owner = 0);

    /* durable */
#ifndef COUNTED_FIRST
    STEP(dirtied[s]++; mine = dirtied[s]);
#endif
    do
    :: STEP(done = synced[s]);
        if
        :: done >= mine -> break
#ifndef FAILURE_FORGOTTEN
        :: done < mine && failed -> break
#endif
        :: else
        fi;
        if
        :: atomic { owner[s] == 0 -> owner[s] = me }
        :: owner[s] != 0 ->         /* kernel_futex_wait, on what was loaded before the lock was found taken */
            if
            :: atomic { synced[s] == done -> asleep[me] = true; sleeps_on[me] = s };
                if
                :: !asleep[me]
#ifndef NO_SLICE
                :: asleep[me] -> asleep[me] = false /* the limit has passed */
#endif
#if DEATHS
                :: DIE
#endif
                fi
            :: synced[s] != done
            fi;
            if                      /* lockword_press */
            :: synced[s] != done -> goto again
            :: atomic { synced[s] == done && owner[s] == 0 -> owner[s] = me }
            :: atomic { synced[s] == done && owner[s] != 0 && gone[owner[s]] -> owner[s] = me }
            :: synced[s] == done && owner[s] != 0 && !gone[owner[s]] -> goto again
            fi
        fi;
        STEP(done = synced[s]);
        STEP(upto = dirtied[s]);
        if                          /* it may wait for more */
        :: upto - done > 1 -> STEP(upto = dirtied[s])
        :: skip
        fi;
        if
        :: done < mine ->
#ifdef SYNCED_FIRST
            STEP(sync_begin(s));
            STEP(synced[s] = upto);
            STEP(sync_end(s));
#else
            STEP(sync_begin(s));
            STEP(sync_end(s));
#ifdef UPTO_LATE
            STEP(upto = dirtied[s]);
#endif
            if :: error -> STEP(failed = true) :: else -> STEP(synced[s] = upto) fi;
#endif
            skip
        :: else
        fi;
        STEP(owner[s] = 0);         /* lockword_release; then wake all */
        STEP(n = 1;
             do :: n <= N -> if :: sleeps_on[n] == s -> asleep[n] = false :: else fi; n++ :: else -> n = 0; break od);
#ifndef FAILURE_FORGOTTEN
        if :: error -> break :: else fi;
#endif
again:
        done = 0; upto = 0; error = false
    od;
#ifndef FAILURE_FORGOTTEN
    if :: failed || error -> goto end_dead :: else fi; /* DurabilityFailed */
#endif
    done = 0; upto = 0; error = false; /* put returns */
    d_step {
        n = 0;
        do :: n <= p -> assert(disk[n] == mem[n]); n++ :: else -> break od;
        n = 0
    };
    assert(disk[p] == me);
end_dead:
    skip
}

init {
    byte n;
    atomic { do :: n < N -> n++; run Putter(n) :: else -> break od }
}
