/* The default protocol of a Synchronizer: leftright.h, with its two halves in leftright.pyx and writer.pyx.

   Writers one after the other, readers with a slot and without one, all killed at any step; and what nobody may ever see:
   bytes of another version than the one that was pinned or copied. README.md says which step stands for which line.

   Bounds, as macros: READERS (with a slot, if they get one), SLOTS, COPIERS (never with a slot), WRITERS (lives, one at a
   time), LAST (the last version), ROUNDS (reads of each reader), KILL_R and KILL_W (how many readers and writers are
   killed), START (the version that is there at first), HOLD (a reader keeps its first result while it reads on). */

/* The protocol as it is. */
/* run: reader_killed  size=small expect=ok -DLAST=3 -DWRITERS=1 -DKILL_R=1 */
/* run: writer_killed  size=small expect=ok -DLAST=3 -DROUNDS=1 -DKILL_W=1 */
/* run: nothing_yet    size=small expect=ok -DSTART=0 -DLAST=2 -DROUNDS=1 -DKILL_W=1 */
/* run: copier         size=small expect=ok -DREADERS=0 -DCOPIERS=1 -DLAST=4 -DKILL_W=1 */
/* run: held           size=small expect=ok -DHOLD -DWRITERS=1 -DLAST=3 */
/* run: dead_pins_are_taken_back size=small expect=ok -DNO_GRACE -DWRITERS=1 -DKILL_R=1 -DLAST=3 */

/* The known race of mmap-sync, and what it does after its grace. */
/* run: no_look_again        size=small expect=error finds="content[at[me]]==v" -DNO_LOOK_AGAIN -DWRITERS=1 */
/* run: in_place_after_grace size=small expect=error finds="content[at[me]]==v" -DIN_PLACE -DWRITERS=1 */
/* Steps of ours taken out, or in another order. */
/* run: no_check_after_map   size=small expect=error finds="content[at[me]]==v" -DNO_MAP_CHECK -DWRITERS=1 */
/* run: no_generation        size=small expect=error finds="content[at[me]]==v" -DNO_GENERATION -DWRITERS=1 */
/* run: generation_before_rename size=large expect=error finds="content[at[me]]==v" -DGENERATION_FIRST -DWRITERS=1 */
/* run: generation_loaded_after_map size=small expect=error finds="content[at[me]]==v" -DGENERATION_LATE -DWRITERS=1 */
/* run: successor_without_generation size=small expect=error finds="content[at[me]]==v" -DNO_GEN_START -DNO_GEN_FIRST -DKILL_W=1 */
/* run: pins_zeroed_without_the_byte size=large expect=error finds="assertion violated" -DNO_BYTE -DWRITERS=1 -DREADERS=2 -DROUNDS=1 -DKILL_R=1 -DLAST=3 */
/* run: bit_cleared_after_the_byte size=small expect=error finds="content[at[me]]==v" -DBIT_AFTER_BYTE -DWRITERS=1 -DREADERS=2 -DROUNDS=1 */
/* run: pinned_before_registered size=small expect=error finds="content[at[me]]==v" -DBIT_LATE -DWRITERS=1 */
/* run: looked_before_publishing size=large expect=error finds="content[at[me]]==v" -DLOOK_EARLY -DWRITERS=1 */
/* run: published_before_filled size=large expect=error finds="content[at[me]]==v" -DPUBLISH_FIRST -DWRITERS=1 */
/* run: copier_does_not_look_again size=small expect=error finds="a==v" -DCOPY_BLIND -DREADERS=0 -DCOPIERS=1 -DWRITERS=1 */
/* run: dead_pins_stay       size=small expect=error finds="invalid end state" -DNO_RECLAIM -DNO_GRACE -DWRITERS=1 -DKILL_R=1 */

/* Either of the two new generations that a successor makes is enough. */
/* run: successor_gen_start size=large expect=ok -DNO_GEN_FIRST -DKILL_W=1 -DLAST=4 */
/* run: successor_gen_first size=large expect=ok -DNO_GEN_START -DKILL_W=1 -DLAST=4 */
/* Longer. */
/* run: held_long      size=large expect=ok -DHOLD -DLAST=4 -DWRITERS=1 */
/* run: two_writers_die size=large expect=ok -DLAST=3 -DROUNDS=1 -DKILL_W=2 */
/* run: slot_reused    size=large expect=ok -DREADERS=2 -DROUNDS=1 -DLAST=3 -DWRITERS=1 -DKILL_R=1 */
/* run: one_reader     size=large expect=ok -DLAST=4 -DKILL_R=1 -DKILL_W=1 */
/* run: reader_and_copier size=large expect=ok -DCOPIERS=1 -DROUNDS=1 -DLAST=3 -DWRITERS=1 */
/* run: two_readers    size=large expect=ok -DREADERS=2 -DSLOTS=2 -DROUNDS=1 -DLAST=3 -DWRITERS=1 */

#ifndef READERS
#define READERS 1
#endif
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef COPIERS
#define COPIERS 0
#endif
#ifndef WRITERS
#define WRITERS (1 + KILL_W)
#endif
#ifndef LAST
#define LAST 4
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef KILL_R
#define KILL_R 0
#endif
#ifndef KILL_W
#define KILL_W 0
#endif
#ifndef START
#define START 1
#endif

#define HANDLES (1 + READERS + COPIERS)     /* those that read: 1, 2, ... */
#define PEOPLE (HANDLES + WRITERS)
#define INODES 5                            /* at a time; checked */
#define NONE 9                              /* no inode */
#define GONE 0                              /* what an inode holds that nobody has */
#define TORN 15
#define IDX(v) ((v) & 1)
#define PINS(slot, i) pins[2 * (slot) + (i)]
#define KEPT(who, i) kept[2 * (who) + (i)]
#define KEPT_LAST(who, i) kept_last[2 * (who) + (i)]

/* The sync file. */
byte V = START;
byte record[2];                 /* the version that it names, or TORN: its check is wrong */
byte pins[2 * SLOTS];
bool in_use[SLOTS];
/* The directory, and what the inodes hold: a version, or TORN. */
byte path[2];
byte content[INODES];
/* The kernel's locks: who has them, or 0. */
byte slot_byte[SLOTS];
byte writer_byte;
/* Who lives. */
bool dead[PEOPLE];
bool over[PEOPLE];
byte kill_r = KILL_R, kill_w = KILL_W;

/* What a handle has in its own memory lies here only so that states that do not differ are seen not to: inodes that
   nobody has are gone, and their numbers free; and a generation is only ever compared with one that was loaded before,
   and only grows, so of each that was loaded it is enough to know whether there has been a newer one since. In the same
   way, of the version that it read last, whether it still is V. */
byte kept[2 * HANDLES] = NONE;  /* its mapping of each data file */
bool kept_last[2 * HANDLES];    /* made under the present generation */
byte at[HANDLES] = NONE;        /* the inode that it reads now */
byte making = NONE;             /* the writer's new inode, without its name */
byte loaded[HANDLES] = NONE;    /* of which index it has loaded the generation, if that is the present one */
bool current[HANDLES];          /* what it read last is V */
#ifdef HOLD
byte held_at[HANDLES] = NONE;
#define HELD_AT(who, x) (held_at[who] == x)
#else
#define HELD_AT(who, x) false
#endif

#if SLOTS == 1
#define ALL_BITS in_use[0]
#else
#define ALL_BITS (in_use[0] | (in_use[1] << 1))    /* not more than two */
#endif
#ifdef NO_RECLAIM
#define RECLAIMS false
#else
#define RECLAIMS true
#endif

hidden byte c_x, c_who, c_free;

/* Inodes that nobody names or has mapped any more. */
inline collect()
{
    d_step {
        c_x = 0;
        do
        :: c_x < INODES ->
           c_free = path[0] != c_x && path[1] != c_x && making != c_x;
           c_who = 1;
           do
           :: c_who < HANDLES ->
              c_free = c_free && KEPT(c_who, 0) != c_x && KEPT(c_who, 1) != c_x && at[c_who] != c_x && !HELD_AT(c_who, c_x);
              c_who++
           :: else -> break
           od;
           if
           :: c_free -> content[c_x] = GONE
           :: else -> skip
           fi;
           c_x++
        :: else -> break
        od;
        c_x = 0; c_who = 0; c_free = 0
    }
}

/* generation[index] + 1 */
inline new_generation(index)
{
    d_step {
        c_who = 1;
        do
        :: c_who < HANDLES ->
           KEPT_LAST(c_who, index) = false;
           if
           :: loaded[c_who] == index -> loaded[c_who] = NONE
           :: else -> skip
           fi;
           c_who++
        :: else -> break
        od;
        c_who = 0
    }
}

inline store_V(version)
{
    d_step {
        V = version;
        c_who = 1;
        do
        :: c_who < HANDLES -> current[c_who] = false; c_who++
        :: else -> break
        od;
        c_who = 0
    }
}

/* ---- the writing half ------------------------------------------------------------------------------------------- */

/* leftright_reclaim. `did`: he was dead. */
inline reclaim(slot)
{
    if
    :: atomic {
           slot_byte[slot] == 0 ->
#ifndef NO_BYTE
           slot_byte[slot] = me;
#endif
           did = true
       };
       PINS(slot, 0) = 0;
       PINS(slot, 1) = 0;
       in_use[slot] = false;
#ifndef NO_BYTE
       slot_byte[slot] = 0
#endif
    :: slot_byte[slot] != 0
    fi
}

inline to_next_bit()
{
    do
    :: k < SLOTS && !((bits >> k) & 1) -> k++
    :: else -> break
    od
}

/* leftright_pinned: the first slot from k on that pins n; SLOTS if there is none. A word of bits is loaded once. */
inline pinned()
{
    d_step {
        bits = ALL_BITS;
        to_next_bit();
        skip
    };
    do
    :: atomic { k < SLOTS && PINS(k, n) == 0 -> k++; to_next_bit() }
    :: atomic { k < SLOTS && PINS(k, n) != 0 -> bits = 0; break }
    :: atomic { k == SLOTS -> bits = 0; break }
    od
}

/* write_locked's look, and make_room: `held`, if somebody who lives (or was not looked after) outlasts the grace. */
inline make_room()
{
    do
    :: k = 0;
       pinned();
       do
       :: atomic {
              k < SLOTS ->
              if
#ifndef NO_RECLAIM
              :: skip                       /* it is time to look whether he lives */
#endif
              :: any = true; goto_next = true
              fi
          };
          if
          :: !goto_next -> reclaim(k)
          :: else -> skip
          fi;
          d_step {
              any = any || !did;
              did = false;
              goto_next = false;
              k++
          };
          pinned()
       :: atomic { k == SLOTS -> k = 0; break }
       od;
       if
#ifndef NO_GRACE
       :: atomic { any -> any = false }     /* waits, and looks again */
       :: atomic { any -> any = false; held = true; break }     /* has waited long enough */
#else
       :: atomic { any && (PINS(0, n) == 0 || (slot_byte[0] == 0 && RECLAIMS)) -> any = false }
#endif
       :: atomic { !any -> break }
       fi
    od
}

inline fill()
{
    content[x] = TORN;
    content[x] = v
}

inline publish()
{
    record[n] = TORN;
    record[n] = v;
    store_V(v)
}

proctype Writer(byte me)
{
    byte n, v, x, k, bits;
    bool any, did, goto_next, held, fresh[2], looked;
    {
        /* One life after the other; a writer that closes does so between two writes, where a death is the same. */
        atomic {
            writer_byte == 0 && (me == HANDLES || over[me - 1]) ->
            writer_byte = me; fresh[0] = true; fresh[1] = true
        };
#ifndef NO_GEN_START
        new_generation(0);
        new_generation(1);
#endif
        do
        :: atomic { V < LAST -> v = V + 1; n = IDX(v) };
#ifdef SWEEP
           if
           :: skip
           :: atomic { in_use[0] -> skip }; reclaim(0); did = false     /* look_around */
           fi;
#endif
#ifdef LOOK_EARLY
           if
           :: !looked -> make_room()
           :: else -> skip                  /* it has looked before it published the last version */
           fi;
           looked = true;
#else
           make_room();
#endif
#ifdef PUBLISH_FIRST
           publish();
#endif
           if
           :: atomic { held ->
#ifdef IN_PLACE
                  x = path[n]
              };
              fill();
#else
                  x = 0;
                  do
                  :: content[x] != GONE || path[0] == x || path[1] == x -> x++; assert(x < INODES)
                  :: else -> break
                  od;
                  content[x] = TORN;
                  making = x
              };
              content[x] = v;
#ifdef GENERATION_FIRST
              new_generation(n);
#endif
              atomic { path[n] = x; making = NONE; collect() };
#if !defined(GENERATION_FIRST) && !defined(NO_GENERATION)
              new_generation(n);
#endif
#endif
              fresh[n] = false
           :: else ->
              x = path[n];
              if
              :: fresh[n] ->
                 fresh[n] = false;
#ifndef NO_GEN_FIRST
                 new_generation(n)
#endif
              :: else -> skip
              fi;
              fill()
           fi;
           d_step { x = 0; held = false };
#ifdef LOOK_EARLY
           n = 1 - n;
           make_room();
           n = 1 - n;
#endif
#ifndef PUBLISH_FIRST
           publish();
#endif
           d_step { v = 0; n = 0 }
        :: atomic { V == LAST -> break }
        od;
        writer_byte = 0
    } unless { dead[me] };
    d_step {
        over[me] = true;
        n = 0; v = 0; x = 0; k = 0; bits = 0;
        any = false; did = false; goto_next = false; held = false; fresh[0] = false; fresh[1] = false; looked = false;
        collect()
    }
}

/* ---- the reading half ------------------------------------------------------------------------------------------- */

inline unpin(index)
{
    d_step { assert(PINS(slot, index) > 0); PINS(slot, index) = PINS(slot, index) - 1 }
}

inline load_V()
{
    v = V;
    cached = current[me]
}

/* Bytes are read one after the other: so look twice. */
inline look_at(inode, version)
{
    assert(content[inode] == version);
    assert(content[inode] == version)
}

inline forget()
{
    d_step {
        slot = 0; i = 0; v = 0; t = 0; rounds = 0; cached = false;
        KEPT(me, 0) = NONE; KEPT(me, 1) = NONE; KEPT_LAST(me, 0) = false; KEPT_LAST(me, 1) = false;
        at[me] = NONE; loaded[me] = NONE; current[me] = false;
#ifdef HOLD
        held_at[me] = NONE;
#endif
        collect()
    }
}

inline let_go()
{
    d_step { at[me] = NONE; loaded[me] = NONE; t = 0; collect() }
}

/* Keeps a new mapping, made under the generation that was loaded before. */
inline keep(index)
{
    KEPT(me, index) = at[me];
    KEPT_LAST(me, index) = loaded[me] == index;
    loaded[me] = NONE
}

proctype Reader(byte me)
{
    byte slot, i, v, t, rounds;
    bool cached;
#ifdef HOLD
    byte held_v;
#endif
    {
        do                                          /* _take_slot */
        :: atomic { slot < SLOTS && slot_byte[slot] == 0 -> slot_byte[slot] = me; break }
        :: atomic { slot < SLOTS && slot_byte[slot] != 0 -> slot++ }
        :: atomic { slot == SLOTS -> goto done }    /* he copies: see Copier */
        od;
        PINS(slot, 0) = 0;                          /* leftright_attach */
        PINS(slot, 1) = 0;
#ifndef BIT_LATE
        in_use[slot] = true;
#endif
        do
        :: atomic { rounds < ROUNDS -> rounds++ };
again:                                              /* leftright_pin */
           atomic { i = IDX(V); t = 0 };
#ifdef NO_LOOK_AGAIN
           atomic { load_V(); i = IDX(v) };
           PINS(slot, i) = PINS(slot, i) + 1;
#else
           do
           :: atomic { t < 2 -> PINS(slot, i) = PINS(slot, i) + 1 };
              atomic {
                  load_V();
                  if
                  :: v != 0 && IDX(v) == i -> break
                  :: else -> skip
                  fi
              };
              atomic {
                  unpin(i);
                  t++;
                  i = IDX(v);
                  if
                  :: v == 0 -> goto next
                  :: else -> skip
                  fi
              }
           :: atomic { t == 2 -> PINS(slot, 0) = PINS(slot, 0) + 1 };
              PINS(slot, 1) = PINS(slot, 1) + 1;
              atomic { load_V(); i = IDX(v) };
              unpin(1 - i);
              break
           od;
#endif
           t = 0;
           if
           :: atomic { cached -> at[me] = KEPT(me, i); cached = false }
           :: else ->                               /* switch */
              t = record[i];
#ifndef GENERATION_LATE
              d_step { cached = KEPT_LAST(me, i); loaded[me] = i };
#else
              cached = KEPT_LAST(me, i);
#endif
              if
              :: t != v ->
                 atomic { assert(V != v); goto release }     /* else: "the record is damaged" */
              :: else -> t = 0
              fi;
              if
              :: atomic { cached -> at[me] = KEPT(me, i); cached = false }
              :: atomic { !cached -> at[me] = path[i] };
#ifdef GENERATION_LATE
                 loaded[me] = i;
#endif
#ifndef NO_MAP_CHECK
                 atomic {
                     if
                     :: V != v -> keep(i); goto release
                     :: else -> skip
                     fi
                 }
#endif
              fi;
              atomic { keep(i); current[me] = V == v; collect() }
           fi;
           look_at(at[me], v);
#ifdef BIT_LATE
           in_use[slot] = true;
#endif
#ifdef HOLD
           if
           :: held_v != 0 -> look_at(held_at[me], held_v); unpin(i)
           :: atomic { held_v == 0 -> held_v = v; held_at[me] = at[me] }
           fi;
#else
           unpin(i);
#endif
           goto next;
release:
           atomic { unpin(i); cached = false; let_go(); goto again };
next:
           atomic { i = 0; v = 0; let_go() }
        :: atomic { rounds == ROUNDS -> break }
        od;
#ifdef HOLD
        if
        :: held_v != 0 -> look_at(held_at[me], held_v); i = IDX(held_v); unpin(i)
        :: else -> skip
        fi;
#endif
#ifdef BIT_AFTER_BYTE
        slot_byte[slot] = 0;
        in_use[slot] = false;
#else
        in_use[slot] = false;                       /* Slot.end */
        slot_byte[slot] = 0;
#endif
done:
        skip
    } unless { dead[me] };
    d_step {
        over[me] = true;
#ifdef HOLD
        held_v = 0;
#endif
        forget()
    }
}

/* A handle without a slot: LeftRight.copy. */
proctype Copier(byte me)
{
    byte slot, i, v, t, rounds, a, b;
    bool cached;
    do
    :: atomic { rounds < ROUNDS -> rounds++ };
again:
       atomic {
           load_V();
           i = IDX(v);
           cached = false;
           if
           :: v == 0 -> goto next
           :: else -> skip
           fi
       };
       t = record[i];
       d_step { cached = KEPT_LAST(me, i); loaded[me] = i };
       atomic {
           if
           :: V != v -> let_go(); goto again
           :: else -> assert(t == v); t = 0
           fi
       };
       if
       :: atomic { cached -> at[me] = KEPT(me, i) }
       :: atomic { !cached -> at[me] = path[i] };
          atomic {
              if
              :: V != v -> let_go(); goto again
              :: else -> keep(i); collect()
              fi
          }
       fi;
       a = content[at[me]];
       b = content[at[me]];
#ifndef COPY_BLIND
       atomic {
           if
           :: V != v -> a = 0; b = 0; let_go(); goto again
           :: else -> skip
           fi
       };
#endif
       assert(a == v && b == v);
next:
       atomic { i = 0; v = 0; a = 0; b = 0; cached = false; let_go() }
    :: atomic { rounds == ROUNDS -> break }
    od;
    forget()
}

/* ---- SIGKILL ------------------------------------------------------------------------------------------------------ */

/* From one moment to the next: nothing more is done, and the kernel drops the locks. */
inline kill_one_of(first, last, budget)
{
    victim = first;
    do
    :: victim < last -> victim++
    :: break
    od;
    if
    :: !dead[victim] && !over[victim] && (victim < HANDLES || writer_byte == victim) ->
       budget--;
       dead[victim] = true;
       if
       :: writer_byte == victim -> writer_byte = 0; making = NONE; collect()
       :: else -> skip
       fi;
       do
       :: k < SLOTS ->
          if
          :: slot_byte[k] == victim -> slot_byte[k] = 0
          :: else -> skip
          fi;
          k++
       :: else -> k = 0; break
       od
    :: else -> skip
    fi;
    victim = 0
}

proctype Killer()
{
    byte k, victim;
end:
    do
#if KILL_R
    :: atomic { kill_r > 0 -> kill_one_of(1, READERS, kill_r) }
#endif
#if KILL_W
    :: atomic { kill_w > 0 -> kill_one_of(HANDLES, PEOPLE - 1, kill_w) }
#endif
    :: atomic { kill_r == 0 && kill_w == 0 -> break }
    od
}

init
{
    byte who = 1;
    atomic {
        path[1] = 1;
#if START == 1
        content[1] = 1;
        record[1] = 1;
#endif
        do
        :: who < PEOPLE ->
           if
           :: who <= READERS -> run Reader(who)
           :: who > READERS && who < HANDLES -> run Copier(who)
           :: who >= HANDLES -> run Writer(who)
           fi;
           who++
        :: else -> who = 0; break
        od;
        run Killer()
    }
}
