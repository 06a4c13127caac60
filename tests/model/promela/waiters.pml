/* Waiting for a version: LeftRight.wait in leftright.pyx, and the second half of leftright_publish in leftright.h.

   One writer publishes LAST versions; each of WAITERS wants to see that there is a newer one than it knows, until it knows
   the last. There is no clock: a wake-up that is lost leaves somebody asleep at the end, which is an invalid end state.
   What a death costs (a slice of the sleep, 100 ms) is in README.md. */

/* run: two_waiters   size=small expect=ok -DWAITERS=2 -DLAST=3 */
/* run: mark_taken_after_the_store size=small expect=error finds="invalid end state" -DTAKEN_LATE -DWAITERS=2 -DLAST=3 */
/* run: one_look_before size=large expect=error finds="invalid end state" -DNO_SECOND_LOOK -DWAITERS=1 -DLAST=2 */
/* run: marks_and_does_not_look size=small expect=error finds="invalid end state" -DNO_LOOK -DWAITERS=1 -DLAST=2 */
/* run: looks_and_then_marks size=large expect=error finds="invalid end state" -DMARK_LATE -DWAITERS=1 -DLAST=2 */
/* run: kernel_does_not_compare size=large expect=error finds="invalid end state" -DNO_COMPARE -DWAITERS=1 -DLAST=2 */
/* run: wakes_one     size=small expect=error finds="invalid end state" -DWAKE_ONE -DWAITERS=2 -DLAST=2 */
/* The kernel compares the word, so the look between mark and sleep is one system call saved, and nothing else. */
/* run: kernel_compares_alone size=large expect=ok -DNO_LOOK_BUT_COMPARE -DWAITERS=2 -DLAST=3 */
/* run: three_waiters size=large expect=ok -DWAITERS=3 -DLAST=4 */

#ifndef WAITERS
#define WAITERS 2
#endif
#ifndef LAST
#define LAST 3
#endif

byte V;
bool mark;                          /* sync.waiters */
bool asleep[WAITERS];

hidden byte c;

inline wake()
{
#ifdef WAKE_ONE
    d_step {
        c = 0;
        do
        :: c < WAITERS && !asleep[c] -> c++
        :: else -> break
        od;
        if
        :: c < WAITERS -> asleep[c] = false
        :: else -> skip
        fi;
        c = 0
    }
#else
    d_step {
        c = 0;
        do
        :: c < WAITERS -> asleep[c] = false; c++
        :: else -> c = 0; break
        od;
        skip
    }
#endif
}

active proctype Writer()
{
    byte v;
    bool marked;
    do
    :: v < LAST ->
       v++;
#ifdef TAKEN_LATE
       V = v;
       marked = mark;
       if
       :: marked -> mark = false
       :: else -> skip
       fi;
       if
       :: marked -> wake()
       :: else -> skip
       fi;
#else
       marked = mark;
       if
       :: marked -> mark = false
       :: else -> skip
       fi;
       V = v;
#ifndef NO_SECOND_LOOK
       marked = marked || mark;
#endif
       if
       :: marked -> wake()
       :: else -> skip
       fi;
#endif
       marked = false
    :: else -> break
    od
}

active [WAITERS] proctype Waiter()
{
    byte seen, version;
    byte me = _pid - 1;
    do
    :: seen < LAST ->
       version = V;
       if
       :: version > seen -> seen = version
       :: else ->
#ifndef MARK_LATE
          mark = true;
#endif
#if !defined(NO_LOOK) && !defined(NO_LOOK_BUT_COMPARE)
          if
          :: V != version
          :: V == version ->
#endif
#ifdef MARK_LATE
          mark = true;
#endif
#if defined(NO_COMPARE) || defined(NO_LOOK) || defined(MARK_LATE)
          asleep[me] = true;
#else
          atomic {
              if
              :: V == version -> asleep[me] = true
              :: else -> skip
              fi
          };
#endif
          !asleep[me]
#if !defined(NO_LOOK) && !defined(NO_LOOK_BUT_COMPARE)
          fi
#endif
       fi
    :: else -> break
    od
}
