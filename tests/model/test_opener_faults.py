"""What the model of openers found, on real files: processes with boot ids of their own, killed where the model kills.

See promela/opener.pml. Rows 8, 13 and 21: a death in a recovery, readers that may not write, two boot ids for a volume.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from queue import Empty

import pytest
import syncfiles
from peers import Peer, PeerDiedError

from mmapds import Queue, Synchronizer


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[str, ...]:
    """A command prefix: a mount namespace with another boot id."""
    boot = tmp_path / "boot_id"
    boot.write_text("00000002-0000-4000-8000-000000000000\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", script, str(boot))
    try:
        done = subprocess.run([*wrapper, "cat", "/proc/sys/kernel/random/boot_id"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if not done.stdout.startswith(b"00000002-"):
        pytest.skip(f"no mount namespaces here: {done.stderr.decode().strip()}")
    return wrapper


def test_r08_r21_a_recovery_killed_elsewhere_is_repeated_here(tmp_path: Path, elsewhere: tuple[str, ...]) -> None:
    path = str(tmp_path / "queue")
    with Queue(path, codec="raw", segment_size=8192) as q:
        q.put_many(b"%d" % n for n in range(300))
        for claim in q.claim_many(100)[::2]:
            claim.ack()
        expected = 250
    with Peer(wrapper=elsewhere) as recoverer, pytest.raises(PeerDiedError):
        recoverer(
            "import mmapds._queuerecovery as module\n"
            "real = module.reset_control\n"
            "def dies(*arguments):\n"
            "    real(*arguments)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "module.reset_control = dies\n"
            "mmapds.Queue(path)",
            path=path,
        )
    found = []
    with Queue(path) as q:
        try:
            while True:
                found.append(q.get_nowait())
        except Empty:
            pass
    assert len(found) == expected, f"{len(found)} of {expected} items are there, {len(set(found))} different ones"


def test_r08_r13_a_recoverer_killed_while_a_reader_looks(tmp_path: Path) -> None:
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        for n in range(1, 8):
            s.write_bytes(b"%d" % n)
    syncfiles.other_boot(syncfiles.sync(prefix))
    syncfiles.flip(
        syncfiles.data(prefix, 1), 8 * 4096 + 6
    )  # version 7 did not reach the disk, as only a recovery notices
    with Peer() as recoverer:
        recoverer(
            "import syncfiles; fd = os.open(syncfiles.sync(prefix), os.O_RDWR); "
            "syncfiles.lock(fd, 0); syncfiles.lock(fd, 1, 0)",
            prefix=prefix,
        )
        with Peer(
            "import mmapds.files, syncfiles\n"
            "real = mmapds.files.kernel.locked\n"
            "def locked(*arguments, **options):\n"
            "    found = real(*arguments, **options)\n"
            "    os.kill(victim, signal.SIGKILL)\n"
            "    while syncfiles.locked(syncfiles.sync(prefix), 0):\n"
            "        pass\n"
            "    return found\n"
            "mmapds.files.kernel.locked = locked",
            prefix=prefix,
            victim=recoverer.pid,
        ) as reader:
            assert reader("s = Synchronizer(prefix, mode='readonly', verify=False); s.version, bytes(s.load())") == (
                6,
                b"6",
            )


@pytest.mark.parametrize("looked", [False, True])
def test_r13_r21_a_readonly_reader_sees_what_was_written_between_two_looks(
    tmp_path: Path, elsewhere: tuple[str, ...], looked: bool
) -> None:
    prefix = str(tmp_path / "value")
    with Synchronizer(prefix, codec="raw") as s:
        s.write_bytes(b"one")
    with Peer("s = Synchronizer(prefix, mode='readonly')", wrapper=elsewhere, prefix=prefix) as reader:
        if looked:
            assert reader("bytes(s.load())") == b"one"
        with Synchronizer(prefix) as s:
            s.write_bytes(b"two")
            s.write_bytes(b"three")
        assert reader("s.version, bytes(s.load())") == (3, b"three")
