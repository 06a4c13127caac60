/* How a file comes to life, and what another boot has left in it: files.py (create, OpenFile, settle, settled), and how the
   structures register behind it (Synchronizer: a slot of its own; Counters and Queue: one byte that all share).

   OPENERS open the file at once, make it if it is not there, recover it if another boot wrote it, register, use it and
   close; WATCHERS may only read, and ask whether the words can be trusted. KILL of them are killed at any step. With
   CONTAINERS the openers have two boot ids, in turn, and the file was last used on the first of them.

   Nobody may open half a file; recover a file in which somebody is alive; use words that nobody has recovered, or that are
   being recovered; or stand still for ever. */

/* run: created        size=small expect=ok -DNEW -DOPENERS=3 -DKILL=1 */
/* run: recovered      size=small expect=ok -DOPENERS=3 -DKILL=1 */
/* run: recovered_shared size=small expect=ok -DSHARED -DOPENERS=3 -DKILL=1 */
/* run: containers     size=small expect=ok -DCONTAINERS -DOPENERS=2 -DKILL=2 */
/* run: containers_shared size=small expect=ok -DCONTAINERS -DSHARED -DOPENERS=3 -DKILL=1 */
/* run: watched        size=small expect=ok -DOPENERS=2 -DWATCHERS=1 -DKILL=2 */

/* Steps taken out. */
/* run: named_before_whole size=small expect=error finds="whole" -DNAMED_FIRST -DNEW -DOPENERS=2 */
/* run: rename_replaces size=large expect=error finds="file==path" -DREPLACES -DNEW -DOPENERS=2 */
/* run: recovered_without_a_lock size=small expect=error finds="assertion violated" -DNO_LOCKS -DOPENERS=2 */
/* run: alive_not_asked size=small expect=error finds="assertion violated" -DNO_RANGE -DCONTAINERS -DOPENERS=2 */
/* run: alive_asked_and_let_go size=large expect=error finds="assertion violated" -DRANGE_TESTED -DSHARED -DCONTAINERS -DOPENERS=2 */
/* run: origin_before_recovery size=small expect=error finds="words==1" -DORIGIN_FIRST -DOPENERS=2 -DKILL=1 */
/* run: origin_left_in_recovery size=small expect=error finds="words==1" -DORIGIN_LEFT -DCONTAINERS -DOPENERS=2 -DKILL=1 */
/* run: origin_not_looked_at_when_registered size=small expect=error finds="words==1" -DNO_LAST_LOOK -DCONTAINERS -DOPENERS=2 -DKILL=1 */
/* run: waits_for_the_dead size=small expect=error finds="invalid end state" -DPID_LOCKS -DOPENERS=2 -DKILL=1 */
/* run: watcher_asks_who_lives_then_who_recovers size=small expect=error finds="words==1" -DTWO_LOOKS -DOPENERS=1 -DWATCHERS=1 -DKILL=1 */
/* run: watcher_takes_a_recoverer_for_alive size=large expect=error finds="words==1" -DONE_LOOK_AT_ANY -DOPENERS=1 -DWATCHERS=1 */

/* Byte 0 spares openers a second recovery, and lets readers register without waiting; the range of all other bytes is what
   keeps recovery and the living apart, alone. */
/* run: byte_0_not_shared size=large expect=ok -DNO_BYTE_0_TO_REGISTER -DCONTAINERS -DOPENERS=3 -DKILL=1 */
/* run: origin_not_looked_at_again size=large expect=ok -DNO_SECOND_LOOK -DOPENERS=3 -DKILL=1 */
/* Longer. */
/* run: created_by_many size=large expect=ok -DNEW -DOPENERS=4 -DKILL=1 */
/* run: recovered_by_many size=large expect=ok -DOPENERS=4 -DKILL=1 */
/* run: shared_by_many  size=large expect=ok -DSHARED -DOPENERS=4 -DKILL=1 */
/* run: many_containers_shared size=large expect=ok -DCONTAINERS -DSHARED -DOPENERS=4 -DKILL=1 */
/* run: watched_by_two  size=large expect=ok -DOPENERS=3 -DWATCHERS=2 -DKILL=2 */

#ifndef OPENERS
#define OPENERS 2
#endif
#ifndef WATCHERS
#define WATCHERS 0
#endif
#ifndef KILL
#define KILL 0
#endif
#define PEOPLE (1 + OPENERS + WATCHERS)
#define HERE 1                  /* the boot id of this kernel, as everybody sees it, or every other one */
#define NOBODY 0                /* an origin that is nobody's: another boot's, another inode's, zeros */

mtype = { LEFT, HALF, SANE };   /* the volatile words: as a crash left them, being recovered, right */

byte path;                      /* whose file has the name; 0: there is none */
bool whole[PEOPLE];             /* of the file that each may make: its size, its header, its first words */
byte origin = NOBODY;
mtype words = LEFT;
bool mine[PEOPLE];              /* a volatile word that belongs to one handle while it lives */
/* The kernel's locks. */
byte byte_0;                    /* exclusive */
byte byte_0_shared;
byte all_others;                /* [1, infinity): who recovers */
bool alive[PEOPLE];             /* a byte from 1 on */
bool shares[PEOPLE];
bool dead[PEOPLE];
bool over[PEOPLE];
byte kills = KILL;

hidden byte c;
hidden byte any;

#ifdef CONTAINERS
#define BOOT (1 + ((me) & 1))
#else
#define BOOT HERE
#endif

/* Whether somebody has a byte from 1 on, or all of them. */
inline look_for_life()
{
    any = false;
    c = 1;
    do
    :: c < PEOPLE -> any = any || alive[c]; c++
    :: else -> break
    od;
    c = 0
}

inline unlock_byte_0()
{
    byte_0 = 0
}

inline recover()
{
    d_step {
        look_for_life();
#ifdef NO_LOCKS
        skip
#else
        assert(!any)
#endif
    };
#ifdef ORIGIN_FIRST
    origin = BOOT;
#endif
#if !defined(ORIGIN_LEFT) && !defined(ORIGIN_FIRST)
    origin = NOBODY;
#endif
    words = HALF;
    d_step {
        c = 1;
        do
        :: c < PEOPLE -> mine[c] = false; c++
        :: else -> break
        od;
        c = 0
    };
    words = SANE;
#ifndef ORIGIN_FIRST
    origin = BOOT
#endif
}

/* OpenFile.settle */
inline settle()
{
    if
    :: origin == BOOT
    :: origin != BOOT ->
#ifdef NO_LOCKS
       recover()
#else
       atomic { byte_0 == 0 && byte_0_shared == 0 -> byte_0 = me };
       if
#ifdef NO_SECOND_LOOK
       :: false
#else
       :: origin == BOOT
#endif
       :: origin != BOOT ->
          atomic {
              look_for_life();
#ifdef NO_RANGE
              any = false;
#endif
              got = !any && all_others == 0;
              any = false;
              if
#ifndef RANGE_TESTED
              :: got -> all_others = me
#endif
              :: else -> skip
              fi
          };
          if
          :: got ->
             recover();
             atomic { all_others = 0; got = false }
          :: else -> skip
          fi
#ifdef NO_SECOND_LOOK
       :: origin == BOOT -> skip
#endif
       fi;
       unlock_byte_0()
#endif
    fi
}

inline register()
{
#ifdef SHARED
    atomic { all_others == 0 -> alive[me] = true }
#else
    do
#ifdef NO_BYTE_0_TO_REGISTER
    :: atomic { all_others == 0 -> alive[me] = true; break }
#else
    :: atomic { byte_0 == 0 -> byte_0_shared++; shares[me] = true };
       if
       :: atomic { all_others == 0 -> alive[me] = true }
       :: atomic { all_others != 0 -> skip }       /* all slots taken: it copies, and looks again */
       fi;
       atomic { byte_0_shared--; shares[me] = false };
       if
       :: alive[me] -> break
       :: else -> skip
       fi
#endif
    od
#endif
}

proctype Opener(byte me)
{
    byte file;
    bool got;
    {
        do
        :: atomic {
               file = path;
               if
               :: file != 0 -> assert(whole[file]); break     /* OpenFile: it is opened, and its header read */
               :: else -> skip
               fi
           };
           /* create: a file without a name, then the name, which fails if there is one */
#ifndef NAMED_FIRST
           whole[me] = true;
#endif
           atomic {
               if
#ifdef REPLACES
               :: true ->
#else
               :: path == 0 ->
#endif
                  path = me;
                  origin = BOOT;
                  words = SANE
#ifndef REPLACES
               :: else -> whole[me] = false
#endif
               fi
           };
#ifdef NAMED_FIRST
           whole[me] = true
#endif
        od;
        do
        :: settle();
           register();
#ifdef NO_LAST_LOOK
           break
#else
           if                       /* somebody may have begun to recover it in between, and died */
           :: origin != NOBODY -> break
           :: origin == NOBODY -> alive[me] = false
           fi
#endif
        od;
        /* use */
        mine[me] = true;
        assert(file == path);
        assert(words == SANE);
        assert(mine[me]);
        mine[me] = false;
        alive[me] = false           /* close */
    } unless { dead[me] };
    atomic { over[me] = true; file = 0; got = false }
}

/* OpenFile.settled, and then a look at the words */
proctype Watcher(byte me)
{
    bool lives, recovers;
    atomic { path != 0 -> skip };
    if
    :: origin == BOOT -> goto trust
    :: else -> skip
    fi;
#if defined(TWO_LOOKS) || defined(ONE_LOOK_AT_ANY)
    atomic { look_for_life(); lives = any || all_others != 0; any = false };
#else
    /* who recovers has all bytes to infinity, who lives has one: one look tells them apart */
    atomic { look_for_life(); lives = any; any = false };
#endif
#ifdef TWO_LOOKS
    recovers = byte_0 != 0;
#endif
    if
    :: lives && !recovers -> goto trust
    :: else -> skip
    fi;
    if
    :: origin == BOOT -> goto trust
    :: else -> goto done            /* recovers in memory of its own */
    fi;
trust:
    assert(words == SANE);
done:
    atomic { over[me] = true; lives = false; recovers = false }
}

/* ---- SIGKILL ------------------------------------------------------------------------------------------------------ */

proctype Killer()
{
    byte victim;
end:
    do
    :: atomic {
           kills > 0 ->
           victim = 1;
           do
           :: victim < OPENERS -> victim++
           :: break
           od;
           if
           :: !dead[victim] && !over[victim] ->
              kills--;
              dead[victim] = true;
              alive[victim] = false;
              if
              :: path != victim -> whole[victim] = false      /* what has no name goes */
              :: else -> skip
              fi;
#ifndef PID_LOCKS
              if
              :: byte_0 == victim -> byte_0 = 0
              :: else -> skip
              fi;
              if
              :: all_others == victim -> all_others = 0
              :: else -> skip
              fi;
#endif
              if
              :: shares[victim] -> shares[victim] = false; byte_0_shared--
              :: else -> skip
              fi
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
#ifndef NEW
        path = PEOPLE - 1;
        whole[PEOPLE - 1] = true;
#ifdef CONTAINERS
        origin = 1;             /* the other container's */
        words = SANE;
#endif
#endif
        do
        :: who <= OPENERS -> run Opener(who); who++
        :: who > OPENERS && who < PEOPLE -> run Watcher(who); who++
        :: who == PEOPLE -> who = 0; break
        od;
#if KILL
        run Killer();
#endif
        skip
    }
}
