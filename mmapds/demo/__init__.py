"""``mmapds demo``: real work, and five deaths, in processes that share nothing but files.

What happens
    A writer publishes the Unicode character table of `unicodedata`, about 145,000 rows, in successive versions. Readers
    read it as fast as they can and check every read. A reader is killed with SIGKILL while it holds a version. Then the
    writer is stopped in the middle of a write, left so for a moment, in which the readers go on, and killed too;
    another writer, which has been waiting for the place, takes over. At the end the files are verified.

    Then as many processes count the letters of the names in that table, together. One is killed while it counts. At the
    end the counters are compared with what the processes said they had counted.

    Then as many processes work off jobs from a queue, and put the results into another. One is killed with a job in its
    hands, which another gets. At the end each job has been done.

    Then as many processes look up names in a map that is built of the table, and walk ranges of its code points, while
    an editor commits one change after the other. The editor is stopped in the middle of a commit, left so, and killed;
    another editor goes on. At the end the whole map is compared with what it must be.

Who is who
    `table` is what is published, and what "torn" means: every check that a reader makes is there; `names` is that for
    the map. `worker` is the program that each process runs. `cast` is how the director sees the processes; `publish`,
    `count`, `work` and `lookup` are its four parts, and `run` puts them together.

Rejected
    Forks of one process: they would share the interpreter's memory, so that a mistake could stay unseen. A synthetic
    value: nobody's data has its shape. Killing the writer at random: it spends a hundredth of its time in a write, and
    the demo should show a death in the middle of one each time. All parts at the same time: each would slow the
    others down, and the figures would say how much.
"""
