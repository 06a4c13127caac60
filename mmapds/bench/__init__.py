"""Benchmarks: what each structure costs, as ratios within one run.

measure      how a time is taken: short slices, all cases in turn, the best of many rounds
machine      what it ran on, and whether anybody else was using it
rows         what is compared, and the ratios that are promised
cases        the calls of the Synchronizer and the mapping layer that are timed
readers      two processes that read at the same time
crate        the Rust crate mmap-sync, timed by a small program of its own
peers        other ways to share a value: shared memory with a lock, LMDB, Redis
report       tables, and Markdown for the documentation
plot         an SVG chart
sync         all of it, for `mmapds bench sync`
"""
