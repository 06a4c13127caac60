/* The lock word: lockword.h, and Lock.acquire and release in lockword.pyx.

   HANDLES take the lock TURNS times each; KILL of them are killed, at any step, and MESSY times one leaves it dirty. Inside, what the lock protects is half
   changed from the first step to the last. Nobody may be inside with another; who finds it half changed must have been
   told (dirty); and nobody sleeps for ever.

   Sleeps are at most 50 ms. The runs without deaths have no clock at all: so no wake-up may be lost. In the others a
   sleep ends when nothing else can happen, and SPURIOUS times before, when it will: if that does not help, all stand still,
   which is an invalid end state. */

/* run: two            size=small expect=ok -DHANDLES=2 -DTURNS=2 */
/* run: three          size=small expect=ok -DHANDLES=3 -DTURNS=1 -DMESSY=0 */
/* run: owner_killed   size=small expect=ok -DHANDLES=2 -DTURNS=2 -DKILL=1 -DCLOCK */
/* run: threads        size=small expect=ok -DHANDLES=2 -DTURNS=2 -DTHREADS */

/* Steps taken out. */
/* run: taken_without_the_byte size=small expect=error finds="inside==0" -DNO_TEST -DHANDLES=3 -DTURNS=1 */
/* run: is_it_still_the_dead_one size=small expect=error finds="inside==0" -DNO_CHECK -DHANDLES=3 -DTURNS=1 -DKILL=1 -DCLOCK */
/* run: stored_not_swapped size=large expect=error finds="inside==0" -DBLIND_STORE -DHANDLES=3 -DTURNS=1 -DKILL=1 -DCLOCK */
/* run: byte_locked_after_the_token size=small expect=error finds="inside==0" -DBYTE_LATE -DHANDLES=2 -DTURNS=1 */
/* run: token_used_again size=small expect=error finds="invalid end state" -DREUSE -DHANDLES=2 -DTURNS=1 -DKILL=1 -DCLOCK */
/* run: own_byte_tested size=small expect=error finds="inside==0" -DTEST_OWN -DHANDLES=2 -DTURNS=1 -DTHREADS */
/* run: dirty_not_said  size=small expect=error finds="dirty" -DNO_DIRTY -DHANDLES=2 -DTURNS=1 -DKILL=1 -DCLOCK */
/* run: left_dirty_not_said size=small expect=error finds="dirty" -DNOT_TOLD -DHANDLES=2 -DTURNS=1 */
/* run: waiters_forgotten_by_the_woken size=small expect=error finds="invalid end state" -DFORGET_WAITERS -DHANDLES=3 -DTURNS=1 */
/* run: waiters_not_announced size=large expect=error finds="invalid end state" -DNO_ANNOUNCE -DHANDLES=2 -DTURNS=1 */
/* run: sleeps_without_comparing size=large expect=error finds="invalid end state" -DNO_COMPARE -DHANDLES=2 -DTURNS=1 */
/* run: nobody_probes   size=small expect=error finds="invalid end state" -DNO_PROBE -DHANDLES=2 -DTURNS=1 -DKILL=1 -DCLOCK */
/* What the 50 ms are for: without them these would sleep for ever. */
/* run: weak_death      size=large expect=error finds="invalid end state" -DHANDLES=3 -DTURNS=1 -DKILL=1 -DMESSY=0 */

/* What the 50 ms are for, continued. */
/* run: weak_giving_up  size=large expect=error finds="invalid end state" -DGIVE_UP -DHANDLES=3 -DTURNS=2 */
/* A token is never used again, so it is enough to test the dead owner's byte; the compare-and-swap does the rest. */
/* run: byte_tested_not_held size=large expect=ok -DNO_BYTE -DHANDLES=3 -DTURNS=1 -DKILL=1 -DCLOCK -DMESSY=0 */
/* Longer. */
/* run: two_killed_often size=large expect=ok -DHANDLES=2 -DTURNS=4 -DKILL=1 -DCLOCK -DSPURIOUS=2 */
/* run: three_long      size=large expect=ok -DHANDLES=3 -DTURNS=2 -DMESSY=0 */
/* run: threads_killed  size=large expect=ok -DHANDLES=3 -DTURNS=1 -DTHREADS -DKILL=1 -DCLOCK */
/* run: three_killed_and_messy size=large expect=ok -DHANDLES=3 -DTURNS=1 -DKILL=1 -DCLOCK */

#ifndef HANDLES
#define HANDLES 2
#endif
#ifndef TURNS
#define TURNS 1
#endif
#ifndef KILL
#define KILL 0
#endif
#ifndef SPURIOUS
#define SPURIOUS 0
#endif
#ifndef MESSY
#define MESSY 1
#endif
#define WAITERS 2
#define DIRTY 1
#define TOKEN(word) ((word) >> 2)
#define OF(token) ((token) << 2)
/* With THREADS, 1 and 2 are threads of one handle. With REUSE, the last draws what the first has had, after its death. */

#ifdef TEST_OWN
#define IS_OURS(owner) false
#else
#define IS_OURS(owner) (owner == token)
#endif
#ifdef NOT_TOLD
#define TELLS(found) false
#else
#define TELLS(found) (found & DIRTY)
#endif
#ifdef NO_TEST
#define MAY_LOCK(owner) true
#else
#define MAY_LOCK(owner) (locked[owner] == 0 || locked[owner] == handle)
#endif
#ifdef NO_DIRTY
#define SAYS_DIRTY 0
#else
#define SAYS_DIRTY DIRTY
#endif
#if defined(THREADS)
#define LAST_THREAD (me > 2 || over[3 - me])
#else
#define LAST_THREAD true
#endif

byte word;
byte locked[HANDLES + 1];           /* byte 2^62 + token: which handle has it */
bool asleep[HANDLES + 1];
byte early[HANDLES + 1] = SPURIOUS;
byte late[HANDLES + 1] = HANDLES * TURNS;    /* each helps somebody, or nobody is ever helped */
byte inside;
bool is_inside[HANDLES + 1];
bool half;                          /* what the lock protects is not in order */
bool dead[HANDLES + 1];
bool over[HANDLES + 1];
byte kills = KILL;
byte messy = MESSY;                  /* so many times somebody leaves it half changed, and says so */

hidden byte c;

/* lockword_try; `waits`: | LOCK_WAITERS */
inline try(waits)
{
    atomic {
        if
        :: word == 0 -> word = OF(token) | (waits -> WAITERS : 0); taken = true; was_dirty = false
        :: else -> found = word
        fi
    };
    do
    :: atomic { !taken && TOKEN(found) == 0 ->
           if
           :: word == found ->
              word = OF(token) | (waits -> WAITERS : 0) | found;
              taken = true;
              was_dirty = TELLS(found)
           :: else -> found = word
           fi
       }
    :: atomic { taken || TOKEN(found) != 0 -> found = 0; break }
    od
}

/* lockword_probe */
inline probe()
{
    atomic { found = word; owner = TOKEN(found) };
    if
    :: owner == 0 -> try(true)
    :: owner != 0 && IS_OURS(owner)
    :: owner != 0 && !IS_OURS(owner) ->
       if
       :: atomic { MAY_LOCK(owner) ->
#ifndef NO_BYTE
              locked[owner] = handle
#endif
          };
#ifdef NO_CHECK
          found = word;
#endif
          do
#if defined(NO_CHECK)
          :: atomic { word == found ->
#elif defined(BLIND_STORE)
          :: atomic { true ->
#else
          :: atomic { TOKEN(found) == owner && word == found ->
#endif
                 word = OF(token) | (found & WAITERS) | SAYS_DIRTY;
                 taken = true;
                 was_dirty = SAYS_DIRTY;
                 break
             }
#ifndef BLIND_STORE
#ifdef NO_CHECK
          :: atomic { word != found -> found = word }
#else
          :: atomic { TOKEN(found) == owner && word != found -> found = word }
          :: atomic { TOKEN(found) != owner -> break }
#endif
#endif
          od;
#ifndef NO_BYTE
          locked[owner] = 0
#endif
       :: !MAY_LOCK(owner)
       fi
    fi;
    atomic { found = 0; owner = 0 }
}

/* lockword_sleep; a sleep ends by a wake-up, or by the clock. */
inline sleep()
{
    found = word;
    if
    :: TOKEN(found) == 0
    :: TOKEN(found) != 0 ->
       if
#ifndef NO_ANNOUNCE
       :: atomic { !(found & WAITERS) && word == found -> word = word | WAITERS; found = word }
       :: atomic { !(found & WAITERS) && word != found -> goto awake }
#else
       :: !(found & WAITERS)
#endif
       :: (found & WAITERS)
       fi;
#ifdef NO_COMPARE
       asleep[me] = true;
#else
       atomic {                     /* the kernel compares and sleeps at once */
           if
           :: word == found -> asleep[me] = true
           :: else -> goto awake
           fi
       };
#endif
       if
       :: !asleep[me]
#ifdef CLOCK
       :: atomic { asleep[me] && late[me] > 0 && timeout -> late[me]--; asleep[me] = false }
#if SPURIOUS
       :: atomic { asleep[me] && early[me] > 0 -> early[me]--; asleep[me] = false }
#endif
#endif
       fi
    fi;
awake:
    found = 0
}

inline wake_one()
{
    if                              /* any of them */
    :: atomic { asleep[1] -> asleep[1] = false }
    :: atomic { asleep[2] -> asleep[2] = false }
#if HANDLES >= 3
    :: atomic { asleep[3] -> asleep[3] = false }
#endif
#if HANDLES >= 4
    :: atomic { asleep[4] -> asleep[4] = false }
#endif
    :: else -> skip
    fi
}

proctype Process(byte me)
{
    byte handle, token, found, owner, turns;
    bool taken, was_dirty, waited, leaves;
    {
        /* Owner.__cinit__ */
        handle = me;
#ifdef THREADS
        if
        :: me == 2 -> handle = 1
        :: else -> skip
        fi;
#endif
#ifdef REUSE
        if
        :: me == HANDLES -> atomic { over[1] && locked[1] == 0 -> token = 1; locked[1] = me }
        :: else -> atomic { token = me; locked[token] = me }
        fi;
#elif defined(BYTE_LATE)
        token = me;
#else
        atomic { token = handle; locked[token] = handle };
#endif
        do
        :: atomic { turns < TURNS -> turns++ };
           try(false);
           do
           :: atomic { !taken && !leaves -> skip };
              if                    /* lockword_press: sees it free, or does not */
              :: atomic { TOKEN(word) == 0 -> skip };
#ifdef FORGET_WAITERS
                 try(false)
#else
                 try(waited)
#endif
              :: skip
              fi;
#ifndef NO_PROBE
              if
              :: !taken -> probe()
              :: else -> skip
              fi;
#endif
              if
              :: atomic { taken -> break }
#ifdef GIVE_UP
              :: atomic { !taken && waited -> leaves = true }       /* its time is over */
#endif
              :: atomic { !taken -> skip }; sleep(); waited = true
              fi
           :: atomic { taken || leaves -> break }
           od;
           if
           :: atomic { leaves -> waited = false; leaves = false; goto next }
           :: else -> skip
           fi;
           atomic {
               assert(inside == 0);
               inside++;
               is_inside[me] = true;
               waited = false;
               assert(!half || was_dirty);
               half = true
           };
#ifdef BYTE_LATE
           locked[token] = handle;
#endif
           atomic {
               if
               :: half = false
               :: messy > 0 -> messy--
               fi;
               inside--;
               is_inside[me] = false;
               taken = false;
               was_dirty = false;
               leaves = half
           };
           atomic { found = word & WAITERS; word = (leaves -> SAYS_DIRTY : 0); leaves = false };    /* lockword_release */
           if
           :: found -> wake_one()
           :: else -> skip
           fi;
           found = 0;
next:
           skip
        :: atomic { turns == TURNS -> break }
        od;
        atomic {
            if
            :: locked[token] == handle && LAST_THREAD -> locked[token] = 0
            :: else -> skip
            fi
        }
    } unless { dead[me] };
    atomic {
        over[me] = true;
        handle = 0; token = 0; found = 0; owner = 0; turns = 0; taken = false; was_dirty = false; waited = false; leaves = false
    }
}

/* ---- SIGKILL ------------------------------------------------------------------------------------------------------ */

inline kill(victim)
{
    dead[victim] = true;
    asleep[victim] = false;
    if
    :: is_inside[victim] -> is_inside[victim] = false; inside--
    :: else -> skip
    fi
}

proctype Killer()
{
    byte victim;
end:
    do
    :: atomic {
           kills > 0 ->
           victim = 1;
           do
           :: victim < HANDLES -> victim++
           :: break
           od;
           if
           :: !dead[victim] && !over[victim] ->
              kills--;
              kill(victim);
#ifdef THREADS
              if
              :: victim == 1 -> kill(2)
              :: victim == 2 -> kill(1); victim = 1
              :: else -> skip
              fi;
#endif
              c = 1;
              do
              :: c <= HANDLES ->
                 if
                 :: locked[c] == victim -> locked[c] = 0
                 :: else -> skip
                 fi;
                 c++
              :: else -> c = 0; break
              od
           :: else -> skip
           fi;
           victim = 0
       }
    :: atomic { kills == 0 -> break }
    od
}

init
{
    byte who = 1;
    atomic {
        do
        :: who <= HANDLES -> run Process(who); who++
        :: else -> who = 0; break
        od;
#if KILL
        run Killer();
#endif
        skip
    }
}
