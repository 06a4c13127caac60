"""Benchmarks: what each structure costs, as ratios within one run.

measure      how a time is taken: short slices, all cases in turn, the best of many rounds
machine      what it ran on, and whether anybody else was using it
rows         what is compared, and the ratios that are promised
run          one run: places, effort, and the document that comes of it
pairs        two processes that work at the same time
peers        what several structures are compared with: a Redis server, one msync
crate        the Rust crate mmap-sync, timed by a small program of its own
prometheus   prometheus_client, timed by a process of its own
report       tables, and Markdown for the documentation
plot         an SVG chart

sync         the Synchronizer and the mapping layer, for `mmapds bench sync`
counters     Counters, for `mmapds bench counters`
queue        the Queue, for `mmapds bench queue`
snapshot     SnapshotMap, for `mmapds bench snapshot`

Each of these has a module with the calls that are timed (`_cases`), and one with other ways to do the same (`_peers`).
For the queue there are three more:

queue_teams  processes that put and take at the same time
queue_opens  opening after a crash, and after another boot
futexes      a C program: the least that waking another process can cost

and for the snapshot map one:

snapshot_teams  other processes: what they see of a commit, and how much memory they take
"""
