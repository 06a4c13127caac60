"""``mmapds demo``: one writer, several readers, a real table, and two deaths, in processes that share nothing else.

What happens
    A writer publishes the Unicode character table of `unicodedata`, about 145,000 rows, in successive versions. Readers
    read it as fast as they can and check every read. A reader is killed with SIGKILL while it holds a version. Then the
    writer is stopped in the middle of a write, left so for a moment, in which the readers go on, and killed too;
    another writer, which has been waiting for the place, takes over. At the end the files are verified.

Who is who
    `table` is what is published, and what "torn" means: every check that a reader makes is there. `worker` is the
    program that each process runs. `run` is the director, which starts, kills and counts.

Rejected
    Forks of one process: they would share the interpreter's memory, so that a mistake could stay unseen. A synthetic
    value: nobody's data has its shape. Killing the writer at random: it spends a hundredth of its time in a write, and
    the demo should show a death in the middle of one each time.
"""
