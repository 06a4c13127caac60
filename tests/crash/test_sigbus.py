"""SIGBUS in a region: a file truncated under its mapping, or a disk that is full, costs a MappingLost."""

import os
from collections.abc import Callable
from pathlib import Path

from sigbus import EVERY_CALL, script


def test_r09_every_call_says_so(run: Callable[..., str], tmp_path: Path) -> None:
    assert run(script(EVERY_CALL), tmp_path / "file") == "alive"


FIRST_TOUCH = """
calls = {
    "pread": lambda r: r.pread(10, 8192),
    "pread large": lambda r: r.pread(1 << 19, 0),
    "pwrite": lambda r: r.pwrite(b"x", 8192),
    "pwrite large": lambda r: r.pwrite(bytes(1 << 19), 0),
    "item": lambda r: r[8192],
    "slice": lambda r: r[8000:9000],
    "steps": lambda r: r[0:9000:100],
    "set steps": lambda r: r.__setitem__(slice(0, 9000, 100), bytes(90)),
    "populate": lambda r: r.populate(),
    "populate for writing": lambda r: r.populate(write=True),
    "load": lambda r: r.atomic(8192).load(),
    "add": lambda r: r.atomic(8192).fetch_add(1),
    "wait": lambda r: r.atomic(8192).wait(0),
    "lock": lambda r: r.lock(8192).acquire(),
    "readline": lambda r: r.readline(),
}
for name, call in calls.items():
    region = region_of()
    os.truncate(path, 4096)
    assert lost(lambda: call(region)), name
    assert lost(lambda: region[0]), name
    region.close()
say("alive")
"""


def test_r09_the_operation_in_hand(run: Callable[..., str], tmp_path: Path) -> None:
    assert run(script(FIRST_TOUCH), tmp_path / "file") == "alive"


def test_r09_others_go_on(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            healthy = Region.open(path + "-healthy", 1 << 20)
            many = [Region.open(path + f"-{i}", 8192) for i in range(600)]    # more than one chunk of the table
            for region in many[::2]:
                region.close()
            lost_one = region_of()
            os.truncate(path, 0)
            assert lost(lambda: lost_one[0])
            healthy[1000] = 1
            assert not any(lost(lambda: region[5000]) for region in many[1::2])
            again = region_of(8192)
            again[0] = 1
            assert lost(lambda: lost_one[0])
            os.truncate(path + "-599", 0)
            assert lost(lambda: many[599][8000])
            for region in [healthy, lost_one, again, *many]:
                region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "alive"


def test_r09_truncated_by_another_process(start: Callable, run: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    reader = start(
        script(
            """
            region = region_of(1 << 22)
            say("reading")
            while not lost(lambda: region.pread(1 << 22, 0)):
                pass
            say("lost")
            region.close()
            """.replace("\n            ", "\n")
        ),
        path,
    )
    reader.expect("reading")
    run("os.truncate(sys.argv[1], 100)", path)
    reader.expect("lost")
    reader.finish()


def test_r09_threads_that_map_and_lose_at_once(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            def work(n):
                for i in range(150):
                    name = f"{path}-{n}"
                    with Region.open(name, (1 + i % 3) << 18, truncate=True) as region:
                        assert not lost(lambda: region.pread(1 << 18, 0))
                        os.truncate(name, 0)
                        assert lost(lambda: region.pread(1 << 18, 0))
                done.append(n)
            done = []
            threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            say(sorted(done))
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "[0, 1, 2, 3, 4, 5]"


def test_r09_a_lock_is_not_taken_on_a_page_of_zeros(start: Callable, tmp_path: Path) -> None:
    path = tmp_path / "file"
    holder = start(
        """
        region = Region.open(sys.argv[1], 1 << 20)
        with region.lock(8):
            say("held")
            hear()
        """,
        path,
    )
    holder.expect("held")
    other = start(
        script(
            """
            region = Region.open(path, 1 << 20)
            lock = region.lock(8)
            assert not lock.acquire(0.01)
            say(memoryview(region)[(1 << 20) - 1])
            hear()
            memoryview(region).obj
            view = memoryview(region)
            say(view[8192])
            say(lost(lambda: lock.acquire(0)), lost(lambda: lock.__enter__()))
            view.release()
            region.close()
            """.replace("\n            ", "\n")
        ),
        path,
    )
    other.expect("0")
    os.truncate(path, 4096)  # the lock's page stays, another one goes
    other.tell()
    other.expect("0")
    other.expect("True True")
    other.finish()
    assert path.read_bytes()[8:16] != bytes(8)  # still the holder's
    holder.kill()


def test_r09_in_a_fork(run: Callable[..., str], tmp_path: Path) -> None:
    said = run(
        script(
            """
            region = region_of()
            if (child := os.fork()) == 0:
                os.truncate(path, 0)
                os._exit(0 if lost(lambda: region[0]) else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert lost(lambda: region[0])
            region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        tmp_path / "file",
    )
    assert said == "alive"


# ---- a full disk, at the touch ----------------------------------------------------------------------------------


def test_r10_a_sparse_file_on_a_full_disk(run: Callable[..., str], mount: Callable[..., Path]) -> None:
    path = mount("tmpfs", "size=1m") / "file"
    said = run(
        script(
            """
            region = Region.open(path, 1 << 24, reserve=False)
            assert lost(lambda: region.pwrite(bytes(1 << 24), 0))
            assert lost(lambda: region[0])
            region.close()
            say("alive")
            """.replace("\n            ", "\n")
        ),
        path,
    )
    assert said == "alive"
