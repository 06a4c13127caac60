/* The queue: putting, taking, claiming, and what becomes of it when anybody dies between any two of his stores.

   What is checked, in every order of the steps and with deaths at each of them:
     - a taker finds whole records only, with the sequence that it expects;
     - whoever has taken the index's lock (after a takeover: and taken the undo log back) finds every word of it as the
       last commit left it;
     - no item is ended twice; each that was published is ended in the end, as long as a consumer lives, also if its producer
       died before he could wake anybody;
     - a claim whose holder lives, and whose lease is not over, is his when he acknowledges it, whoever is buried meanwhile;
     - no segment loses its name while something in it is not ended, and each does afterwards;
     - nobody sleeps while there is something for him (without deaths: without the time limit of the sleeps; with deaths: a
       sleeper looks for himself when it has passed);
     - nobody is blocked for ever: "invalid end state";
     - a copy that was made without a lock, and found good, is of one moment.

   Names follow the code; the table is in README-queue-map.md, with what is left out. One step is one store, or one load
   that decides something, of the shared memory; what a step does besides is private, or ghost: G, done.

   Every fault (-D...) below is a rule of the code taken away; spin must find it. */

/* The protocol. */
/* run: dying_put         expect=ok -DPRODUCERS=2 -DPUTS=1 -DCONSUMERS=1 -DDEATHS=1 */
/* run: dying_get         expect=ok -DPUTS=1 -DCONSUMERS=2 -DDEATHS=1 */
/* run: dying_claim       expect=ok -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DDEATHS=1 */
/* run: get               size=large expect=ok -DPUTS=2 -DCONSUMERS=2 */
/* run: lease             size=large expect=ok -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DEXPIRIES=1 */
/* run: looker            size=large expect=ok -DPUTS=1 -DCONSUMERS=1 -DCLAIM -DRETURNS=1 -DLOOKER */
/* run: room              size=large expect=ok -DPRODUCERS=2 -DPUTS=1 -DCONSUMERS=1 -DMAXSIZE=1 */
/* run: three_sleepers    size=large expect=ok -DPUTS=2 -DCONSUMERS=3 */

/* With more of everything. */
/* run: dying_get_two     size=large expect=ok -DPUTS=2 -DCONSUMERS=2 -DDEATHS=1 */
/* run: dying_segment     size=large expect=ok -DPUTS=2 -DCONSUMERS=2 -DSEG=2 -DDEATHS=1 */
/* run: dying_return      size=large expect=ok -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DDEATHS=1 -DRETURNS=1 */
/* run: dying_claim_two   size=large expect=ok -DPUTS=2 -DCONSUMERS=2 -DCLAIM -DDEATHS=1 */
/* run: dying_puts        size=large expect=ok -DPRODUCERS=2 -DPUTS=2 -DCONSUMERS=1 -DDEATHS=2 */
/* run: dying_rollback    size=large expect=ok -DPUTS=1 -DCONSUMERS=3 -DDEATHS=2 */
/* run: dying_room        size=large expect=ok -DPRODUCERS=2 -DPUTS=1 -DCONSUMERS=1 -DMAXSIZE=1 -DDEATHS=1 */
/* run: dying_lease       size=large expect=ok -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DEXPIRIES=1 -DDEATHS=1 */

/* Faults. */
/* run: tail_first        size=large expect=error finds="rec[p]!=255" -DCONSUMERS=1 -DTAIL_FIRST */
/* run: not_restored      size=large expect=error finds="rseq[p]" -DPUTS=1 -DPRODUCERS=2 -DCONSUMERS=1 -DDEATHS=1 -DNOT_RESTORED */
/* run: saved_swapped     size=large expect=error finds="rseq[p]" -DPUTS=2 -DPRODUCERS=2 -DCONSUMERS=1 -DDEATHS=1 -DSAVED_SWAPPED */
/* run: cleared_early     expect=error finds="W[n]==G[n]" -DPUTS=1 -DCONSUMERS=2 -DDEATHS=1 -DCLEARED_EARLY */
/* run: logged_late       size=large expect=error finds="done[n]" -DCONSUMERS=2 -DDEATHS=1 -DLOGGED_LATE */
/* run: length_first      size=large expect=error finds="W[n]==G[n]" -DCONSUMERS=2 -DDEATHS=1 -DLENGTH_FIRST */
/* run: forward           size=large expect=error finds="W[n]==G[n]" -DCONSUMERS=2 -DCLAIM -DDEATHS=1 -DFORWARD */
/* run: no_rollback       size=large expect=error finds="done[n]" -DCONSUMERS=2 -DDEATHS=1 -DNO_ROLLBACK */
/* run: rollback_shrinks  size=large expect=error finds="W[n]==G[n]" -DPUTS=1 -DCONSUMERS=3 -DDEATHS=2 -DROLLBACK_SHRINKS */
/* run: unlinked_first    size=large expect=error finds="done[n]" -DCONSUMERS=2 -DDEATHS=1 -DUNLINKED_FIRST */
/* run: unlink_forgotten  size=large expect=error finds="exists[n]" -DCONSUMERS=2 -DDEATHS=1 -DUNLINK_FORGOTTEN */
/* run: named_late        size=large expect=error finds="exists[n]" -DPRODUCERS=2 -DCONSUMERS=1 -DNAMED_LATE */
/* run: no_fence_check    size=large expect=error finds="done[p]" -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DEXPIRIES=1 -DNO_FENCE_CHECK */
/* run: no_token_check    size=large expect=error finds="claim_lost" -DPUTS=1 -DCONSUMERS=3 -DCLAIM -DDEATHS=1 -DSLOTS=2 -DNO_TOKEN_CHECK */
/* run: no_burial         size=large expect=error finds="W[2]==0" -DPUTS=1 -DCONSUMERS=2 -DCLAIM -DDEATHS=1 -DNO_BURIAL */
/* run: no_slice          size=large expect=error finds="done[n]" -DPUTS=1 -DCONSUMERS=1 -DDEATHS=1 -DNO_SLICE */
/* run: wake_omitted      size=large expect=error finds="done[n]" -DPUTS=1 -DCONSUMERS=1 -DWAKE_OMITTED */
/* run: wake_first        size=large expect=error finds="done[n]" -DCONSUMERS=1 -DWAKE_FIRST */
/* run: seen_late         expect=error finds="done[n]" -DPUTS=2 -DCONSUMERS=1 -DSEEN_LATE */
/* run: no_second_look    size=large expect=error finds="done[n]" -DCONSUMERS=1 -DNO_SECOND_LOOK */
/* run: no_chain          size=large expect=error finds="done[n]" -DPUTS=2 -DCONSUMERS=2 -DQUOTA=1 -DNO_CHAIN */
/* run: no_rearm          size=large expect=error finds="done[n]" -DPUTS=2 -DCONSUMERS=2 -DQUOTA=1 -DNO_REARM */
/* run: no_room_wake      size=large expect=error finds="ended" -DPUTS=2 -DCONSUMERS=1 -DMAXSIZE=1 -DNO_ROOM_WAKE */
/* run: changes_late      size=large expect=error finds="moment" -DPUTS=1 -DCONSUMERS=1 -DCLAIM -DRETURNS=1 -DLOOKER -DCHANGES_LATE */
/* run: looked_once       size=large expect=error finds="moment" -DPUTS=1 -DCONSUMERS=1 -DCLAIM -DRETURNS=1 -DLOOKER -DLOOKED_ONCE */

#ifndef PRODUCERS
#define PRODUCERS 1
#endif
#ifndef PUTS
#define PUTS 2                      /* of each producer */
#endif
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef RETURNS
#define RETURNS 0                   /* nacks, in all */
#endif
#ifndef EXPIRIES
#define EXPIRIES 0                  /* leases that end, in all */
#endif
#ifndef SLOTS
#define SLOTS CONSUMERS             /* places among the holders */
#else
#define REGISTER                    /* fewer than consumers: they are taken, and taken again, in the run */
#endif
#ifndef QUOTA
#define QUOTA 100                   /* items that a consumer takes before it goes away */
#endif
#ifndef SEG
#define SEG 1                       /* records in a segment */
#endif

#define N (PRODUCERS * PUTS)        /* positions: one for each item */
#define SEGMENTS (N / SEG + 1)
#define PROCESSES (PRODUCERS + CONSUMERS + 1)
#define NONE 255
#define TORN 255

/* The words of the index, all under the undo log. */
#define HEAD 0
#define HSEQ 1                      /* head_sequence */
#define CLAIMED 2
#define READY 3
#define FINISHED 4                  /* a segment's number + 1 */
#define KIND(p) (5 + (p))           /* of the entry for the record at p */
#define HOLDER(p) (5 + N + (p))     /* a slot + 1 */
#define FENCE(p) (5 + 2 * N + (p))
#define TOKEN(s) (5 + 3 * N + (s))
#define WORDS (5 + 3 * N + SLOTS)
#define FREE 0
#define MADE 1
#define WAITING 2
#define HELD 3
#define UNDO 12

#define PUT 0                       /* the two locks */
#define TAKE 1
#define ITEMS 0                     /* the two events */
#define ROOM 1

byte W[WORDS];
byte G[WORDS];                      /* ghost: as the last commit left it */
byte undo_at[UNDO], undo_was[UNDO];
byte logged, changes;
byte fences;
byte tail, tail_sequence, saved_tail, saved_sequence;
byte rec[N + 1], rseq[N + 1];       /* an item, TORN while it is written; its sequence */
bool exists[SEGMENTS], made[SEGMENTS];
byte owner[2];                      /* of the lock words; ids from 1 on */
bool dirty[2];
byte bytelock[PROCESSES];           /* who has locked a dead one's byte */
bool gone[PROCESSES];               /* dead: the kernel knows */
byte count[2];                      /* events */
bool sleepers[2];
bool asleep[PROCESSES];             /* in the kernel's queue of the futex */
byte waits_for[PROCESSES];

byte deaths = DEATHS, returns = RETURNS, expiries = EXPIRIES;
byte done[N + 1];                   /* ghost: how often the item at a position was ended */
byte ended;                         /* ghost: producers that are through */
bool claim_lost;                    /* ghost */

#if DEATHS
#define DIE atomic { deaths > 0 -> deaths--; gone[me] = true; asleep[me] = false; goto end_dead }
#define STEP(what) if :: atomic { what } :: DIE fi
#else
#define STEP(what) atomic { what }
#endif

#define byte_is_free(who) (bytelock[who] == 0 || gone[bytelock[who]])
#define dead_owner(lock) (owner[lock] != 0 && gone[owner[lock]])

/* There is something for a sleeper that looks: what the limit of a sleep is for. */
#define there (W[HEAD] < tail || W[READY] > 0 || dead_owner(TAKE) || dead_holder)
#if CONSUMERS == 1 || defined(NO_BURIAL)
#define dead_holder false
#elif CONSUMERS == 2
#define dead_holder (W[CLAIMED] > 0 && (gone[PRODUCERS + 1] || gone[PRODUCERS + 2]))
#else
#define dead_holder (W[CLAIMED] > 0 && (gone[PRODUCERS + 1] || gone[PRODUCERS + 2] || gone[PRODUCERS + 3]))
#endif

/* ---- the lock word, in short: synchroniser and lock have models of their own --------------------------------------- */

inline acquire(lock) {
    if
    :: atomic { owner[lock] == 0 -> owner[lock] = me }
#if DEATHS
    :: atomic { dead_owner(lock) && (byte_is_free(owner[lock]) || bytelock[owner[lock]] == me) ->
                bytelock[owner[lock]] = 0; /* lockword_probe unlocks it, also if bury_dead had it */
                owner[lock] = me; dirty[lock] = true }
#endif
    fi
}

inline release(lock) { STEP(owner[lock] = 0; dirty[lock] = false) }

/* ---- the undo log: queueindex.h -------------------------------------------------------------------------------------- */

inline set(word, value) {
#if defined(LOGGED_LATE)
    STEP(undo_at[logged] = word; undo_was[logged] = W[word]; W[word] = value);
    STEP(logged++)
#elif defined(LENGTH_FIRST)
    STEP(logged++);
    STEP(undo_at[logged - 1] = word; undo_was[logged - 1] = W[word]);
    STEP(W[word] = value)
#else
    STEP(undo_at[logged] = word; undo_was[logged] = W[word]; logged++); /* nobody looks at the pair before that */
    STEP(W[word] = value)
#endif
}

inline remember() { d_step { n = 0; do :: n < WORDS -> G[n] = W[n]; n++ :: else -> break od; n = 0 } }

/* `logged = 0` is where the transition happens; ghost: the item that it ends. */
inline ends(item) { if :: item != NONE -> done[item]++; assert(done[item] == 1) :: else fi }

inline commit(item) {
#ifdef CHANGES_LATE
    STEP(logged = 0; remember(); ends(item));
    STEP(changes++)
#else
#ifdef LOOKER
    STEP(changes++);
#endif
    STEP(logged = 0; remember(); ends(item))
#endif
}

inline rollback() {
#ifndef NO_ROLLBACK
    n = logged;
#ifdef FORWARD
    n = 0;
    do :: n < logged -> STEP(W[undo_at[n]] = undo_was[n]; n++) :: else -> break od;
#elif defined(ROLLBACK_SHRINKS)
    do :: n > 0 -> n--; STEP(logged = n); STEP(W[undo_at[n]] = undo_was[n]) :: else -> break od;
#else
    do :: n > 0 -> n--; STEP(W[undo_at[n]] = undo_was[n]) :: else -> break od;
#endif
#ifdef LOOKER
    STEP(changes++);
#endif
#endif
    STEP(logged = 0)
}

/* queue_drop: the name of a finished segment goes; nothing in it may be of use to anybody. */
inline drop() {
    STEP(n = (W[FINISHED] - 1) * SEG;
         do :: n < W[FINISHED] * SEG && n < N -> assert(done[n] == 1); n++ :: else -> break od; n = 0;
         exists[W[FINISHED] - 1] = false);
    STEP(W[FINISHED] = 0; G[FINISHED] = 0)
}

inline take_lock() {
    acquire(TAKE);
    if
    :: dirty[TAKE] ->
        rollback();
#ifndef UNLINK_FORGOTTEN
        if :: W[FINISHED] -> drop() :: else fi
#endif
    :: else
    fi;
    d_step { n = 0; do :: n < WORDS -> assert(W[n] == G[n]); n++ :: else -> break od; n = 0 } /* whole */
}

inline take_unlock() {
    if :: W[FINISHED] -> drop() :: else fi;
    release(TAKE)
}

/* ---- waking: queue_wake -------------------------------------------------------------------------------------------- */

inline futex_wake(event) {          /* one of those who sleep, whichever */
    if
    :: asleep[1] && waits_for[1] == event -> asleep[1] = false
    :: asleep[2] && waits_for[2] == event -> asleep[2] = false
#if PRODUCERS + CONSUMERS > 2
    :: asleep[3] && waits_for[3] == event -> asleep[3] = false
#endif
#if PRODUCERS + CONSUMERS > 3
    :: asleep[4] && waits_for[4] == event -> asleep[4] = false
#endif
    :: else
    fi
}

inline wake_some(event) {
    if
    :: sleepers[event] ->
        STEP(sleepers[event] = false);
        STEP(count[event]++);
        STEP(futex_wake(event))
    :: else
    fi
}

inline announce(event) {            /* the count first: a waker that takes our mark for an older item raises it */
#ifdef SEEN_LATE
    STEP(sleepers[event] = true);
    STEP(seen = count[event])
#else
    STEP(seen = count[event]);
    STEP(sleepers[event] = true)
#endif
}

/* ---- segments: _make_segment, _name_segment -------------------------------------------------------------------------- */

inline make_segment(number) {       /* a file is prepared before, without the lock, and given its name under it */
    acquire(PUT);
    put_recover();
#ifndef NAMED_LATE
    if
    :: tail > (number) * SEG
    :: else -> STEP(if :: !made[number] -> made[number] = true; exists[number] = true :: else fi)
    fi;
#else
    STEP(exists[number] = true; made[number] = true);
#endif
    release(PUT)
}

/* ---- putting: queueput.h ------------------------------------------------------------------------------------------------ */

inline put_recover() {
#ifndef NOT_RESTORED
    if :: dirty[PUT] && saved_tail == tail -> STEP(tail_sequence = saved_sequence) :: else fi
#else
    skip
#endif
}

proctype Producer(byte me) {
    byte k, t, seen, n;
    bool announced;
    do
    :: k == PUTS -> break
    :: else ->
again:
        acquire(PUT);
        put_recover();
#ifdef MAXSIZE
        STEP(n = W[HSEQ]);
        STEP(n = tail_sequence - n + W[READY]);
        if
        :: n >= MAXSIZE ->
            n = 0;
            release(PUT);
            if
            :: announced ->
                if
                :: atomic { count[ROOM] == seen -> asleep[me] = true; waits_for[me] = ROOM };
end_room:           if
                    :: !asleep[me]
#if DEATHS
                    :: atomic { W[HSEQ] + MAXSIZE > tail_sequence + W[READY] || dead_owner(TAKE) || dead_owner(PUT) ->
                                asleep[me] = false } /* the limit */
                    :: DIE
#endif
                    fi
                :: count[ROOM] != seen
                fi
            :: else
            fi;
            announce(ROOM);
            announced = true;
            goto again
        :: else -> n = 0
        fi;
#endif
        t = tail;
        if
        :: !made[t / SEG] ->
            release(PUT);
            make_segment(t / SEG);
            goto again
        :: else
        fi;
#ifdef NAMED_LATE
        if :: exists[t / SEG] :: else -> STEP(exists[t / SEG] = true) fi;
#endif
#ifdef TAIL_FIRST
        STEP(rec[t] = TORN; tail = t + 1);
#else
        STEP(rec[t] = TORN);
#endif
        STEP(rec[t] = me; rseq[t] = tail_sequence);
#ifdef SAVED_SWAPPED
        STEP(saved_tail = t);
        STEP(saved_sequence = tail_sequence);
#else
        STEP(saved_sequence = tail_sequence);
        STEP(saved_tail = t);
#endif
        STEP(tail_sequence++);
#ifdef WAKE_FIRST
        wake_some(ITEMS);
#endif
        STEP(tail = t + 1);
        release(PUT);
#ifndef WAKE_OMITTED
#ifndef WAKE_FIRST
        wake_some(ITEMS);
#endif
#endif
#ifdef MAXSIZE
        if :: announced -> wake_some(ROOM) :: else fi; /* others may wait for the room that is left */
        announced = false;
#endif
        atomic { k++; t = 0 }
    od;
    ended++;
end_dead:
    skip
}

/* ---- taking: queue.h, queuetake.pyx --------------------------------------------------------------------------------------- */

/* queue_leave, queue_free: the segment is finished if the head has left it and nothing else of it is in the index. */
inline finish(position) {
    d_step {
        n = (position) / SEG * SEG;
        last = ((position) / SEG + 1) * SEG <= W[HEAD];
        do
        :: n < ((position) / SEG + 1) * SEG && n < N -> last = last && W[KIND(n)] == FREE; n++
        :: else -> break
        od;
        n = 0
    };
    if
    :: last -> last = false; set(FINISHED, (position) / SEG + 1)
    :: else
    fi
}

/* A claim goes back, whosever it was: queue_unhold, queue_await. */
inline give_back(position) {
    set(CLAIMED, W[CLAIMED] - 1);
    set(HOLDER(position), 0);
    set(FENCE(position), 0);
    set(KIND(position), WAITING);
    set(READY, W[READY] + 1);
    commit(NONE)
}

inline find_held(condition) {
    d_step { q = 0; do :: q < N && !(W[KIND(q)] == HELD && (condition)) -> q++ :: else -> break od }
}

/* queue_bury_dead */
inline bury() {
#if DEATHS
    b = 0; found = false;
    do
    :: b == SLOTS -> break
    :: else ->
        token = W[TOKEN(b)];
        if
        :: atomic { token != 0 && token != me && gone[token] && byte_is_free(token) -> bytelock[token] = me };
            take_lock();
            if
#ifdef NO_TOKEN_CHECK
            :: true ->
#else
            :: W[TOKEN(b)] == token ->
#endif
                do
                :: find_held(W[HOLDER(q)] == b + 1);
                    if :: q == N -> q = 0; break :: else -> give_back(q); found = true fi
                od;
                set(TOKEN(b), 0);
                commit(NONE)
            :: else
            fi;
            take_unlock();
            STEP(if :: bytelock[token] == me -> bytelock[token] = 0 :: else fi)
        :: else
        fi;
        token = 0;
        b++
    od;
    b = 0;
    if :: found -> wake_some(ITEMS) :: else fi
#else
    found = false
#endif
}

proctype Consumer(byte me) {
    byte p, seen, n, slot, fence, b, q, token, taken;
    bool announced, last, found, swept, at_head, back;
#ifdef REGISTER
register:
    take_lock();
    d_step { slot = 1; do :: slot <= SLOTS && W[TOKEN(slot - 1)] != 0 -> slot++ :: else -> break od };
    if
    :: slot > SLOTS ->              /* QUEUE_CROWDED */
        slot = 0;
        take_unlock();
end_crowded:
        gone[W[TOKEN(0)]] || gone[W[TOKEN(SLOTS - 1)]] || dead_owner(TAKE);
        bury();
        goto register
    :: else ->
        set(TOKEN(slot - 1), me);
        commit(NONE);
        take_unlock()
    fi;
#else
    slot = me - PRODUCERS;
#endif

look:
    take_lock();
#if EXPIRIES
    if                              /* queue_expire: the lease of one is over, or not */
    :: expiries > 0 && W[CLAIMED] > 0 ->
        expiries--;
        find_held(true);
        give_back(q);
        q = 0
    :: skip
    fi;
#endif
    /* queue_pick */
    d_step { p = 0; do :: p < N && W[KIND(p)] != WAITING -> p++ :: else -> break od };
    if
    :: p == N ->
        p = W[HEAD];
        if
        :: p >= tail -> p = 0; take_unlock(); goto nothing
        :: else
        fi;
        at_head = true
    :: else
    fi;
    assert(rec[p] != TORN && rec[p] != 0);
    if :: at_head -> assert(rseq[p] == W[HSEQ]) :: else fi;

#ifndef CLAIM
    /* queue_take_one, GET; the payload is copied before the commit */
    if
    :: at_head ->
        set(HEAD, p + 1);
#ifdef CLEARED_EARLY
        STEP(logged = 0; remember());
        STEP(W[HSEQ] = p + 1);
#else
        set(HSEQ, W[HSEQ] + 1)
#endif
    :: else ->
        set(READY, W[READY] - 1);
        set(KIND(p), FREE)
    fi;
    finish(p);
#ifdef UNLINKED_FIRST
    if :: W[FINISHED] -> drop() :: else fi;
#endif
    commit(p);
    atomic { at_head = false; p = 0; taken = (QUOTA < 100 -> taken + 1 : 0) };
    take_unlock();
#ifdef MAXSIZE
#ifndef NO_ROOM_WAKE
    wake_some(ROOM);
#endif
#endif
#else
    /* queue_take_one, CLAIM */
    if
    :: at_head ->
        set(KIND(p), MADE);
        set(HEAD, p + 1);
        set(HSEQ, W[HSEQ] + 1)
    :: else ->
        set(READY, W[READY] - 1)
    fi;
    STEP(fences++; fence = fences); /* not logged: a number that is skipped does no harm */
    set(FENCE(p), fence);
    set(HOLDER(p), slot);
    set(KIND(p), HELD);
    set(CLAIMED, W[CLAIMED] + 1);
    commit(NONE);
    at_head = false;
    take_unlock();
#endif
#ifndef NO_CHAIN
    if :: announced && (W[HEAD] < tail || W[READY] > 0) -> wake_some(ITEMS) :: else fi;
#endif
    atomic { announced = false; swept = false; seen = 0 };

#ifdef CLAIM
    if                              /* the holder has done with it; or dies */
    :: back = false
    :: atomic { returns > 0 -> returns--; back = true }
#if DEATHS
    :: DIE
#endif
    fi;
    take_lock();
    if
#ifdef NO_FENCE_CHECK
    :: true ->
#else
    :: W[FENCE(p)] == fence && W[HOLDER(p)] == slot -> /* queue_ours */
#endif
        if
        :: back -> give_back(p)
        :: else ->                  /* queue_ack: queue_unhold, queue_free */
            set(CLAIMED, W[CLAIMED] - 1);
            set(HOLDER(p), 0);
            set(FENCE(p), 0);
            set(KIND(p), FREE);
            finish(p);
            commit(p)
        fi
    :: else ->                      /* QUEUE_STALE */
#if EXPIRIES == 0
        claim_lost = true;
        assert(!claim_lost)
#else
        skip
#endif
    fi;
    take_unlock();
    if :: back -> wake_some(ITEMS) :: else fi;
    atomic { back = false; p = 0; fence = 0; taken = (QUOTA < 100 -> taken + 1 : 0) };
#endif
    if :: taken == QUOTA -> goto end_dead :: else -> goto look fi;

nothing:
#if DEATHS
    if
    :: !swept && W[CLAIMED] > 0 ->
        swept = true;
        bury();
        if :: found -> found = false; goto look :: else fi
    :: else
    fi;
#endif
#ifdef NO_SECOND_LOOK
    announce(ITEMS); announced = true;
#endif
    if
    :: announced ->
        if
        :: atomic { count[ITEMS] == seen -> asleep[me] = true; waits_for[me] = ITEMS };
end_sleep:  if
            :: !asleep[me]
#if DEATHS
#ifndef NO_SLICE
            :: atomic { there -> asleep[me] = false }; /* the limit: QUEUE_SLICE, _tend */
#ifndef NO_BURIAL
                bury()
#endif
#endif
            :: DIE
#endif
            fi
        :: count[ITEMS] != seen
        fi
    :: else
    fi;
#ifdef NO_REARM
    if :: announced -> seen = count[ITEMS] :: else -> announce(ITEMS) fi;
#else
    announce(ITEMS);
#endif
    announced = true;
    goto look;
end_dead:
    skip
}

/* ---- looking without a lock: queue_begin_look, queue_end_look --------------------------------------------------------- */

#ifdef LOOKER
proctype Looker() {
    byte before, claimed, ready, head, sequence, n, kinds;
again:
    before = changes;
    if :: logged != 0 -> goto end_look :: else fi; /* it looks again; one look of each kind is enough */
    claimed = W[CLAIMED];
    head = W[HEAD];
    do
    :: n < N -> atomic { kinds = kinds + (W[KIND(n)] == HELD -> 1 : 0); n++ }
    :: else -> break
    od;
    sequence = W[HSEQ];
    ready = W[READY];
#ifndef LOOKED_ONCE
    if :: logged != 0 -> goto end_look :: else fi;
#endif
    if
    :: changes == before ->
        bool moment = head == sequence && kinds == claimed;
        assert(moment)
    :: else
    fi;
end_look:
    skip
}
#endif

/* ---- when nobody can do anything any more ------------------------------------------------------------------------------- */

active proctype Monitor() {
    byte n, dead, left;
    timeout ->
    d_step {
        n = 1;
        do
        :: n <= PRODUCERS -> dead = dead + gone[n]; n++
        :: n > PRODUCERS && n < PROCESSES -> left = left + !gone[n]; n++
        :: else -> break
        od;
        n = 0;
        if
        :: left ->
            assert(ended + dead == PRODUCERS); /* no producer waits for room that is there */
            assert(W[CLAIMED] == 0);
            do
            :: n < N -> assert(n >= tail || done[n] == 1); n++
            :: else -> break
            od;
            n = 0;
            do
            :: n < W[HEAD] / SEG -> assert(!exists[n]); n++
            :: else -> break
            od
        :: else
        fi
    }
}

init {
    byte n;
    atomic {
#ifndef REGISTER
        do :: n < SLOTS -> W[TOKEN(n)] = PRODUCERS + 1 + n; G[TOKEN(n)] = W[TOKEN(n)]; n++ :: else -> break od;
        n = 0;
#endif
        do :: n < PRODUCERS + CONSUMERS ->
            n++;
            if :: n <= PRODUCERS -> run Producer(n) :: else -> run Consumer(n) fi
        :: else -> break
        od;
#ifdef LOOKER
        run Looker()
#endif
    }
}
