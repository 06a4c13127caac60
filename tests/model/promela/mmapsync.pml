/* The protocol of the Rust crate mmap-sync, as mmapsync.h and mmapsync.pyx speak it.

   The version word names an index and a value (its checksum and size), and is no sequence: the same value in the same file
   makes the same word. The counts of readers are shared, and do not say whose they are. So there are two kinds of runs.
   Where nobody is stopped beyond the grace and nobody dies counted (PATIENT: the writer waits as long as it takes), no
   reader may ever see anything but the value whose version it pinned. Where the writer resets a count, that cannot be
   promised; what is left is that a count never goes below 0, that nobody waits for ever, and that what a reader gets when
   it pins has passed the checksum. Three runs show, on the protocol as it is, that no more can be promised: `weak_...`. */

/* run: patient        size=small expect=ok -DPATIENT -DWRITES=4 -DREADERS=1 -DROUNDS=2 */
/* run: patient_two    size=small expect=ok -DPATIENT -DWRITES=3 -DREADERS=2 -DROUNDS=1 */
/* run: writer_killed  size=small expect=ok -DPATIENT -DWRITES=3 -DREADERS=1 -DROUNDS=2 -DKILL_W=1 */
/* run: reset          size=small expect=ok -DWRITES=4 -DREADERS=1 -DROUNDS=2 -DKILL_R=1 */
/* run: copier         size=small expect=ok -DWRITES=4 -DREADERS=0 -DCOPIERS=1 -DKILL_W=1 */

/* What the crate does. */
/* run: crate_reader   size=small expect=error finds="stored[i]==(w/2)" -DPATIENT -DCRATE_READER -DWRITES=4 -DREADERS=1 */
/* run: crate_release  size=small expect=error finds="readers[i]>0" -DCRATE_RELEASE -DWRITES=3 -DREADERS=2 -DROUNDS=1 */
/* run: crate_checksum size=small expect=error finds="stored[i]==(w/2)" -DNO_CHECKSUM -DWRITES=3 -DREADERS=1 */
/* What cannot be mended from one side. */
/* run: weak_slow_reader size=large expect=error finds="stored[i]==(w/2)" -DHOLDS -DWRITES=3 -DREADERS=1 -DROUNDS=1 */
/* Steps of ours taken out. */
/* run: looks_before_it_counts size=small expect=error finds="stored[i]==(w/2)" -DPATIENT -DNO_LOOK_AGAIN -DWRITES=4 -DREADERS=1 */
/* run: writer_does_not_look size=large expect=error finds="stored[i]==(w/2)" -DPATIENT -DNO_WAIT -DWRITES=3 -DREADERS=1 */
/* run: third_round_drops_both size=large expect=error finds="stored[i]==(w/2)" -DPATIENT -DDROP_BOTH -DWRITES=5 -DREADERS=1 */
/* run: copier_does_not_look_again size=large expect=error finds="a==(w/2)" -DCOPY_BLIND -DNO_CHECKSUM -DWRITES=3 -DREADERS=0 -DCOPIERS=1 */
/* run: no_reset       size=small expect=error finds="invalid end state" -DPATIENT -DKILL_R=1 -DWRITES=3 -DREADERS=1 */

/* What cannot be mended from one side, continued. */
/* run: weak_count_undone size=large expect=error finds="in_time[me]" -DHOLDS -DIN_TIME -DWRITES=4 -DREADERS=2 -DROUNDS=1 */
/* run: weak_dead_count size=large expect=error finds="in_time[me]" -DHOLDS -DIN_TIME -DDEAD_ONLY -DWRITES=4 -DREADERS=2 -DROUNDS=1 -DKILL_R=1 */
/* ... but the third can: by a compare-and-swap of the count that was seen, instead of a store. */
/* run: reset_by_swap  size=large expect=ok -DSWAP -DHOLDS -DIN_TIME -DDEAD_ONLY -DWRITES=4 -DREADERS=2 -DROUNDS=1 -DKILL_R=1 */
/* Longer. */
/* run: patient_long   size=large expect=ok -DPATIENT -DWRITES=6 -DREADERS=1 -DROUNDS=3 -DKILL_W=1 */
/* run: patient_two_long size=large expect=ok -DPATIENT -DWRITES=4 -DREADERS=2 -DROUNDS=2 */
/* run: three_readers  size=large expect=ok -DPATIENT -DWRITES=3 -DREADERS=3 -DROUNDS=1 */
/* run: reset_two      size=large expect=ok -DWRITES=3 -DREADERS=2 -DROUNDS=1 -DKILL_R=1 -DKILL_W=1 */
/* run: reader_and_copier size=large expect=ok -DWRITES=4 -DREADERS=1 -DCOPIERS=1 -DROUNDS=1 -DKILL_R=1 -DKILL_W=1 */

#ifndef READERS
#define READERS 1
#endif
#ifndef COPIERS
#define COPIERS 0
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef WRITES
#define WRITES 4
#endif
#ifndef KILL_R
#define KILL_R 0
#endif
#ifndef KILL_W
#define KILL_W 0
#endif
#define WRITERS (1 + KILL_W)
#define HANDLES (1 + READERS + COPIERS)
#define PEOPLE (HANDLES + WRITERS)

/* A version word: index, and a value of two, so that words return; 0: nothing has been written. */
#define WORD(index, value) (2 * (value) + (index))
#define INDEX(word) ((word) & 1)
#define VALUE(word) ((word) / 2)
#define TORN 7

byte version;
byte readers[2];
byte stored[2];                     /* what the data files hold */
byte writer_lock;                   /* flock */
byte writes = WRITES;
bool dead[PEOPLE];
bool over[PEOPLE];
byte kill_r = KILL_R, kill_w = KILL_W;
/* For the checks only. Which index a reader has counted itself for, plus 1; whether no grace has passed over it. */
byte counted[HANDLES];
bool in_time[HANDLES];

hidden byte c;

#ifdef SWAP
#define MAY_RESET (expired && readers[n] == seen)
#else
#define MAY_RESET expired
#endif

/* ---- the writer --------------------------------------------------------------------------------------------------- */

/* wait_for_readers */
inline wait_for_readers()
{
#ifndef NO_WAIT
    do
    :: atomic { readers[n] == 0 -> break }
#ifndef PATIENT
    :: atomic {                     /* the grace is over */
           readers[n] != 0 ->
#ifdef DEAD_ONLY
           /* a grace so long that everybody who lives and was counted when it began has gone */
           c = 1;
           do
           :: c < HANDLES && (dead[c] || counted[c] != n + 1) -> c++
           :: else -> break
           od;
           if
           :: c == HANDLES -> expired = true; seen = readers[n]; break
           :: else -> skip
           fi
#else
           expired = true;
           break
#endif
       }
#endif
    od;
#ifndef PATIENT
    if
    :: !expired
#ifdef SWAP
    :: expired && readers[n] != seen -> expired = false; seen = 0; goto look
#endif
    :: atomic {
           MAY_RESET ->
           expired = false;
           seen = 0;
           readers[n] = 0;
#ifndef DEAD_ONLY
           c = 1;
           do
           :: c < HANDLES ->
              if
              :: counted[c] == n + 1 -> in_time[c] = false
              :: else -> skip
              fi;
              c++
           :: else -> c = 0; break
           od
#endif
       }
    fi
#endif
#else
    skip
#endif
}

proctype Writer(byte me)
{
    byte n, value, seen;
    bool expired;
    {
        atomic { writer_lock == 0 && (me == HANDLES || over[me - 1]) -> writer_lock = me };
        do
        :: atomic {
               writes > 0 ->
               writes--;
               if
               :: value = 1
               :: value = 2
               fi;
               n = (version == 0 -> 0 : 1 - INDEX(version))
           };
look:
           wait_for_readers();
           stored[n] = TORN;
           stored[n] = value;
           version = WORD(n, value);
           d_step { n = 0; value = 0 }
        :: atomic { writes == 0 -> break }
        od;
        writer_lock = 0
    } unless { dead[me] };
    d_step { over[me] = true; n = 0; value = 0; seen = 0; expired = false }
}

/* ---- readers ------------------------------------------------------------------------------------------------------ */

inline count(index)
{
    d_step {
        readers[index] = readers[index] + 1;
        assert(readers[index] <= READERS);
        counted[me] = index + 1;
        in_time[me] = true
    }
}

/* mmapsync_unpin: a compare-and-swap that does nothing at 0. */
inline release(index)
{
    d_step {
#ifdef CRATE_RELEASE
        assert(readers[index] > 0);
        readers[index] = readers[index] - 1;
#else
        if
        :: readers[index] > 0 -> readers[index] = readers[index] - 1
        :: else -> skip
        fi;
#endif
        counted[me] = 0
    }
}

proctype Reader(byte me)
{
    byte i, w, t, rounds;
#define word_value VALUE(w)
    {
        do
        :: atomic { rounds < ROUNDS -> rounds++; w = version; i = INDEX(w); t = 0 };
#ifdef CRATE_READER
           if
           :: w == 0 -> goto next
           :: else -> count(i)
           fi;
#else
           do
           :: atomic { t < 2 -> count(i) };
#ifndef NO_LOOK_AGAIN
              atomic {
                  w = version;
                  if
                  :: w != 0 && INDEX(w) == i -> break
                  :: else -> skip
                  fi
              };
#else
              if
              :: w != 0 -> break
              :: else -> skip
              fi;
#endif
              atomic {
                  release(i);
                  t++;
                  i = INDEX(w);
                  if
                  :: w == 0 -> goto next
                  :: else -> skip
                  fi
              }
           :: atomic { t == 2 -> t = 0; count(0) };
              count(1);
              atomic { w = version; i = INDEX(w) };
              release(1 - i);
              d_step {
                  counted[me] = i + 1
#ifdef DROP_BOTH
                  ; readers[i] = readers[i] - 1
#endif
              };
              break
           od;
#endif
           t = 0;
#if !defined(PATIENT) && !defined(NO_CHECKSUM)
           /* verify_crate: what does not match is an error, and nobody gets it. Its bytes are read one after the other. */
           if
           :: stored[i] == word_value
           :: atomic { stored[i] != word_value -> goto refuse }
           fi;
#endif
#if defined(PATIENT) || defined(HOLDS) || defined(NO_CHECKSUM)
#ifdef IN_TIME
           /* torn although nobody has waited in vain for this reader */
           if
           :: stored[i] == word_value
           :: stored[i] != word_value -> assert(!in_time[me])
           fi;
#else
           assert(stored[i] == word_value);
           assert(stored[i] == word_value);
#endif
#endif
refuse:
           release(i);
next:
           atomic { w = 0; i = 0; t = 0; in_time[me] = false }
        :: atomic { rounds == ROUNDS -> break }
        od
    } unless { dead[me] };
    atomic { over[me] = true; w = 0; i = 0; t = 0; rounds = 0; counted[me] = 0; in_time[me] = false }
}

/* Crate.copy */
proctype Copier(byte me)
{
    byte w, a, b, rounds;
    do
    :: atomic { rounds < ROUNDS -> rounds++ };
again:
       atomic {
           w = version;
           if
           :: w == 0 -> goto next
           :: else -> skip
           fi
       };
       a = stored[INDEX(w)];
       b = stored[INDEX(w)];
#ifndef COPY_BLIND
       atomic {
           if
           :: version != w -> a = 0; b = 0; goto again
           :: else -> skip
           fi
       };
#endif
       atomic {
           if
#ifndef NO_CHECKSUM
           :: a != word_value || b != word_value -> goto next      /* refused */
#endif
           :: else -> assert(a == word_value && b == word_value)
           fi
       };
next:
       atomic { w = 0; a = 0; b = 0 }
    :: atomic { rounds == ROUNDS -> break }
    od;
    atomic { over[me] = true; rounds = 0 }
}

/* ---- SIGKILL ------------------------------------------------------------------------------------------------------ */

inline kill_one_of(first, last, budget)
{
    victim = first;
    do
    :: victim < last -> victim++
    :: break
    od;
    if
    :: !dead[victim] && !over[victim] && (victim < HANDLES || writer_lock == victim) ->
       budget--;
       dead[victim] = true;
       if
       :: writer_lock == victim -> writer_lock = 0
       :: else -> skip
       fi
    :: else -> skip
    fi;
    victim = 0
}

proctype Killer()
{
    byte victim;
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
