"""Scripts of processes that lose the end of a region, and look at it in every way."""

# What a peer does: makes a region, loses its end, and looks at it in every way.
LOSE = """
import ctypes, faulthandler, mmap
from mmapds import MappingLost
path = sys.argv[1]

def region_of(size=1 << 20, **options):
    return Region.open(path, size, truncate=True, **options)

def foreign_fault():
    # a mapping that is not ours
    with open(path + "-foreign", "w+b") as file:
        file.truncate(8192)
        other = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
        other[5000]

def lost(call):
    try:
        call()
    except MappingLost:
        return True
    return False
"""

DIES = """
{
    "fault": foreign_fault,
    "raise": lambda: signal.raise_signal(signal.SIGBUS),
    "kill": lambda: os.kill(os.getpid(), signal.SIGBUS),
}[sys.argv[2]]()
say("survived")
"""


def script(*parts: str) -> str:
    return LOSE + "\n".join(parts)


EVERY_CALL = """
region = region_of()
view, word, lock = memoryview(region), region.atomic(0), region.lock(8)
os.truncate(path, 4096)
assert bytes(view[4096:]) == bytes(len(view) - 4096)    # zeros, through a view
view[5000] = 1                                          # to nowhere
assert os.stat(path).st_size == 4096
for call in (
    lambda: region.pread(1, 0), lambda: region.pwrite(b"x", 0), lambda: region[0], lambda: region[:10],
    lambda: region[::2], lambda: region.__setitem__(0, 1), lambda: region.__setitem__(slice(0, 4, 2), b"ab"),
    lambda: memoryview(region), lambda: region.atomic(0).load(), word.load, lambda: word.store(1), word.fetch_add,
    lambda: word.exchange(1), lambda: word.compare_exchange(0, 1), lambda: word.wait(0), lambda: word.wait(1),
    lock.acquire, lock.__enter__, region.populate, region.resident, region.flush, lambda: region.flush(wait=False),
    lambda: region.advise("normal"), region.resize, region.read, region.readline, lambda: region.write(b"x"),
):
    assert lost(call), call
with open(path, "rb") as file:
    assert file.read() == bytes(4096)                   # nothing was published
region.close()
view.release()
say("alive")
"""
