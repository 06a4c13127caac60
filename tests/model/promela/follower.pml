/* The snapshot map: a writer that commits, folds, compacts and dies anywhere, and readers who follow it.

   What is checked, in every order of the steps:
     - a lookup finds, for each key, what the commit stored that its manifest says was the last one: nothing newer, nothing
       older, nothing torn, however far the writer is;
     - a reader who misses a file of his manifest finds a newer manifest: the map is never said to be damaged;
     - a writer who comes after a dead one finds what the manifest names;
     - whichever of the manifests that the disk may have comes back after a power loss, from the last one that was made
       durable to the newest: its layer is there under its name, and complete; with durability "power" its delta is too, up
       to the end that it says.

   A file is an inode with content, and a name (a number), which may go while somebody reads the inode. The delta has one
   chain for two keys, so that all of it is walked; each commit stores both, with one stamp that nobody else has. The
   manifest is published and read in one step: the Synchronizer has a model of its own. The writer that follows a dead one is
   the same process, with nothing in its memory: the kernel's lock lets in one at a time. Names follow the code
   (snapshot.h, _snapcommit.py, _snapfiles.py, snapshot.py); the table is in README-queue-map.md. */

/* The protocol. */
/* run: following         size=large expect=ok -DCOMMITS=3 */
/* run: dying             expect=ok -DCOMMITS=2 -DDEATHS=1 */
/* run: power             expect=ok -DCOMMITS=2 -DDEATHS=1 -DPOWER -DLOOKUPS=1 -DCOMPACTS=1 */
/* run: compacting        size=large expect=ok -DCOMMITS=4 -DCOMPACTS=1 */
/* run: dying_twice       size=large expect=ok -DCOMMITS=3 -DDEATHS=2 -DCOMPACTS=1 */
/* run: two_readers       size=large expect=ok -DCOMMITS=3 -DREADERS=2 -DDEATHS=1 -DLOOKUPS=1 */

/* Faults. */
/* run: head_first        size=large expect=error finds="value" -DHEAD_FIRST */
/* run: no_step_over      expect=error finds="value" -DNO_STEP_OVER */
/* run: stop_at_newer     size=large expect=error finds="value" -DSTOP_AT_NEWER */
/* run: published_first   size=large expect=error finds="value" -DPUBLISHED_FIRST */
/* run: unlinked_first    size=large expect=error finds="missing" -DCOMMITS=3 -DUNLINKED_FIRST */
/* run: no_retry          size=large expect=error finds="missing" -DCOMMITS=3 -DNO_RETRY */
/* run: appended_again    expect=error finds="value" -DCOMMITS=3 -DDEATHS=1 -DAPPENDED_AGAIN */
/* run: written_late      size=large expect=error finds="value" -DCOMMITS=3 -DDEATHS=1 -DWRITTEN_LATE */
/* run: manifest_unsynced size=large expect=error finds="name_lost" -DCOMMITS=5 -DREADERS=0 -DMANIFEST_UNSYNCED */
/* run: layer_unsynced    size=large expect=error finds="layer_synced" -DCOMMITS=3 -DREADERS=0 -DLAYER_UNSYNCED */
/* run: batch_unsynced    size=large expect=error finds="delta_synced" -DREADERS=0 -DPOWER -DBATCH_UNSYNCED */
/* run: not_swept         size=large expect=error finds="in_use" -DCOMMITS=3 -DDEATHS=1 -DREADERS=0 -DNOT_SWEPT */

#ifndef COMMITS
#define COMMITS 2
#endif
#ifndef COMPACTS
#define COMPACTS 0
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef READERS
#define READERS 1
#endif
#ifndef LOOKUPS
#define LOOKUPS 2                   /* versions that a reader looks at, one after the other */
#endif
#ifndef CAPACITY
#define CAPACITY 4                  /* nodes in a delta: two batches */
#endif
#define FILES (2 * (COMMITS + COMPACTS + DEATHS) + 2)
#define VERSIONS (COMMITS + COMPACTS + DEATHS + 2)
#define TORN 255

/* Inodes. A layer: `value`. A delta: chain, head, written. Nodes count from 1 on; record and node have one number, odd for
   one key, even for the other. */
byte inodes;
byte number[FILES];                 /* the name that it got */
byte value[FILES];
bool synced[FILES];                 /* a layer, before it has its name */
byte next[FILES * (CAPACITY + 1)], record[FILES * (CAPACITY + 1)];
byte head[FILES], written[FILES], durable_end[FILES];
byte named[FILES];                  /* by number: the inode, or 0 */

/* Manifests, all that were ever published; `current` is the sequence of the Synchronizer. */
byte current, durable;              /* `durable`: the last that is on the disk for certain */
byte m_layer[VERSIONS], m_delta[VERSIONS], m_end[VERSIONS], m_number[VERSIONS];
byte m_stamp[VERSIONS];             /* ghost: what both keys have */
byte stamps;                        /* ghost */
byte commits = COMMITS, compacts = COMPACTS, deaths = DEATHS;

#define NEXT(f, n) next[(f) * (CAPACITY + 1) + (n)]
#define RECORD(f, n) record[(f) * (CAPACITY + 1) + (n)]
#define NAMED(f) named[number[f]]
#if DEATHS
#define STEP(what) if :: atomic { what } :: atomic { deaths > 0 -> deaths--; goto begin } fi
#else
#define STEP(what) atomic { what }
#endif

/* Any manifest from `durable` on may be what a power loss leaves. */
inline disk() {
    v = durable;
    do
    :: v <= current ->
        if
        :: m_layer[v] ->
            name_lost = NAMED(m_layer[v]) != m_layer[v];
            assert(!name_lost);
            layer_synced = synced[m_layer[v]];
            assert(layer_synced)
        :: else
        fi;
#ifdef POWER
        if
        :: m_delta[v] ->
            name_lost = NAMED(m_delta[v]) != m_delta[v];
            assert(!name_lost);
            delta_synced = durable_end[m_delta[v]] >= m_end[v];
            assert(delta_synced)
        :: else
        fi;
#endif
        v++
    :: else -> break
    od;
    v = 0; name_lost = false; layer_synced = false; delta_synced = false
}

/* A file of the number that the writer's copy of the manifest says. */
inline create(file) {
    inodes++; file = inodes;
    in_use = named[at_number] != 0;
    assert(!in_use);
    number[file] = at_number
}

inline name(file) { named[at_number] = file; at_number++ }

inline unlink(file) { NAMED(file) = 0; disk() }

/* Committer._fold: what is published becomes a layer, and there is no delta. */
inline fold() {
#ifdef LAYER_UNSYNCED
    STEP(create(made); value[made] = stamp; name(made));
#else
    STEP(create(made); value[made] = stamp); /* nobody sees it: it has no name */
    STEP(synced[made] = true);
    STEP(name(made));
#endif
    atomic { old_layer = layer; old_delta = delta; layer = made; delta = 0; end = 0; made = 0 }
}

/* Manifest.write_bytes */
inline publish() {
    STEP(current++;
         m_layer[current] = layer; m_delta[current] = delta; m_end[current] = end; m_number[current] = at_number;
         m_stamp[current] = stamp; disk());
#ifdef POWER
    STEP(durable = current)
#endif
}

/* retire: files that the manifest that was just published does without. */
inline retire() {
    if
    :: old_layer || old_delta ->
#ifndef MANIFEST_UNSYNCED
        STEP(durable = current);    /* make_durable */
#endif
        if :: old_layer -> STEP(unlink(old_layer)); old_layer = 0 :: else fi;
        if :: old_delta -> STEP(unlink(old_delta)); old_delta = 0 :: else fi
    :: else
    fi
}

proctype Writer() {
    byte layer, delta, end, stamp, at_number, made, old_layer, old_delta, n, v, upto;
    bool in_use, name_lost, layer_synced, delta_synced, fresh;
begin:
    /* Committer.begin: the kernel has given us the place; what the one before had in his memory is gone */
    atomic {
        layer = m_layer[current]; delta = m_delta[current]; end = m_end[current]; at_number = m_number[current];
        stamp = m_stamp[current];
        made = 0; old_layer = 0; old_delta = 0; v = 0; upto = 0; fresh = false;
        name_lost = false; layer_synced = false; delta_synced = false; in_use = false
    };
#if DEATHS
#ifndef NOT_SWEPT
    /* sweep: what the manifest does not name */
    n = 0;
    do
    :: n < FILES ->
        if
        :: named[n] && named[n] != layer && named[n] != delta ->
            STEP(durable = current);
            STEP(named[n] = 0; disk())
        :: else
        fi;
        n++
    :: else -> n = 0; break
    od;
#endif
#endif
    do
    :: commits == 0 && compacts == 0 -> break
    :: compacts > 0 && (layer || delta) ->
        compacts--;
        fold();                     /* Committer.compact, then a commit without changes */
        publish();
        retire()
    :: commits > 0 ->
        commits--;
        if
        :: delta == 0 -> fresh = true
#ifndef APPENDED_AGAIN
        :: delta != 0 && written[delta] != end && written[delta] != 0 -> fresh = true /* _appendable */
#endif
        :: delta != 0 && end == CAPACITY -> fresh = true
        :: else
        fi;
        if
        :: fresh ->
            fresh = false;
            if :: delta -> fold() :: else fi;
#ifdef UNLINKED_FIRST
            retire();
#endif
            STEP(create(delta); name(delta));
            end = 0
        :: else
        fi;
        atomic { stamps++; stamp = stamps; upto = end + 2 };
#ifdef PUBLISHED_FIRST
        atomic { n = end; end = upto };
        publish();
        end = n;
#endif
#ifdef HEAD_FIRST
        STEP(head[delta] = end + 2);
#endif
        /* append: records and nodes, behind the last batch */
        STEP(RECORD(delta, end + 1) = TORN; NEXT(delta, end + 1) = 0;
             RECORD(delta, end + 2) = TORN; NEXT(delta, end + 2) = 0);
        STEP(RECORD(delta, end + 1) = stamp; RECORD(delta, end + 2) = stamp);
#ifndef WRITTEN_LATE
        STEP(written[delta] = upto);
#endif
        /* link */
        STEP(NEXT(delta, end + 1) = head[delta]);
        STEP(head[delta] = end + 1);
        STEP(NEXT(delta, end + 2) = head[delta]);
        STEP(head[delta] = end + 2);
#ifdef WRITTEN_LATE
        STEP(written[delta] = upto);
#endif
#ifdef POWER
#ifndef BATCH_UNSYNCED
        STEP(durable_end[delta] = upto); /* _sync_delta */
#endif
#endif
        end = upto;
        upto = 0;
#ifndef PUBLISHED_FIRST
        publish();
#endif
        retire()
    od
}

/* MapCore, SnapshotMap._reload, snap_get */
proctype Reader() {
    byte seen = 255, version, layer, delta, end, stamp, at, links, found, key, lookups, mapped_layer, mapped_delta;
    bool missing;
    do
    :: lookups == LOOKUPS -> break
    :: else ->
        lookups++;
again:
        if
        :: atomic { current != seen ->
                    version = current; layer = m_layer[current]; delta = m_delta[current]; end = m_end[current];
                    stamp = m_stamp[current] };
            /* _state_of: maps what is new, by name */
            if
            :: layer && layer != mapped_layer ->
                if
                :: NAMED(layer) == layer -> mapped_layer = layer
                :: NAMED(layer) != layer -> goto gone
                fi
            :: else
            fi;
            if
            :: delta && delta != mapped_delta ->
                if
                :: NAMED(delta) == delta -> mapped_delta = delta
                :: NAMED(delta) != delta -> goto gone
                fi
            :: else
            fi;
            seen = version;         /* _go_by */
            goto look;
gone:
#ifndef NO_RETRY
            if :: current != version -> goto again :: else fi;
#endif
            missing = true;
            assert(!missing)
        :: current == seen
        fi;
look:
        key = 1;                    /* the other one is 0 */
        do
        :: found = 0;
            at = 0;
            if :: delta -> at = head[delta] :: else fi;
            do
            :: at == 0 -> break
            :: else ->
                links = NEXT(delta, at);
                if
#ifdef NO_STEP_OVER
                :: at % 2 == key -> found = RECORD(delta, at); break
#else
                :: at <= end && at % 2 == key -> found = RECORD(delta, at); break
#endif
#ifdef STOP_AT_NEWER
                :: at > end -> break
#endif
                :: else
                fi;
                assert(links < at); /* a chain falls */
                at = links
            od;
            if :: found == 0 && layer -> found = value[layer] :: else fi;
            bool right_value = found == stamp;
            assert(right_value);
            if :: key == 0 -> break :: else -> key = 0 fi
        od;
        atomic { at = 0; links = 0; found = 0; key = 0; right_value = false }
    od
}

init {
    byte n;
    atomic {
        m_number[0] = 1;
        run Writer();
        do :: n < READERS -> n++; run Reader() :: else -> break od
    }
}
