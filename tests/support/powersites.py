"""Call sites that sync and of which the simulator shows no need, each with the reason why that is so.

A key is a site (powerlog.site_name) without line numbers, so that it outlives changes of other lines. A site may be
needed in one structure and not in another: those of `files.create` are two lines of code, and refuted where nothing
else does their work. Whoever adds a sync to this list has to say what covers it.
"""

from __future__ import annotations

import re

_OPENERS = (
    "whoever opens the file for writing in durability 'power' syncs the same names at once, in case its maker died"
)
_ANEW = "a recovery is derived from the records, and done again in the next boot from whatever is there: same result"


def key(site: str) -> str:
    return re.sub(r":\d+:", ":", site)


REDUNDANT = {
    # Of the names of new files, where another sync follows before anything is promised.
    "files.py:sync < files.py:create < counters.py:Counters._open_file": _OPENERS,
    "files.py:sync < files.py:create < _queuefiles.py:QueueFiles.create < queue.py:Queue._open_files": _OPENERS,
    "files.py:sync < _queuefiles.py:QueueFiles.create < queue.py:Queue._open_files": _OPENERS,
    "files.py:sync < files.py:create < _queuemaps.py:QueueMaps._make_segment": (
        "the caller syncs the folder once more, in case the segment was there already and its maker died"
    ),
    "files.py:sync < files.py:create < synchronizer.py:Synchronizer._open_file": (
        "of a SnapshotMap: who makes it becomes the writer before it is open, and syncs the names first"
    ),
    "files.py:sync < _snapcommit.py:_Building.publish": (
        "the manifest is made durable before it, with the names of the map that may not be on the disk yet, and its own"
    ),
    # Of contents that a later sync covers before they count.
    "files.py:sync < files.py:create < _datafiles.py:DataFiles.target": (
        "the sync of the value begins at the header page and comes before the version is published; a data file that a "
        "power cut leaves without a header is set aside by the recovery"
    ),
    "writer.pyx:sync_range < synchronizer.py:Synchronizer._heal": (
        "no version is published before its data are synced: this one is for data of a disk that has failed a sync, "
        "whose pages are made dirty anew before it; the simulator's syncs never fail (those of row 12's tests do)"
    ),
    # Of what a recovery writes.
    "files.py:sync < files.py:OpenFile.settle": _ANEW,
    "files.py:sync < _queuerecovery.py:carry_out": _ANEW,
}
