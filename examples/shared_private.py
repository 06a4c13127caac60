"""Two shells and one file: what is written in mode "shared" is seen by the other, in mode "private" it is not.

    python examples/shared_private.py

It shows what emmap's announcement shows in two Erlang shells. This process is shell 1; it starts shell 2, an unrelated
process, and tells it over a pipe what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Literal

from mmapds import Region


def shell_2(path: str) -> None:
    """Does what it is told, line by line: "open MODE", "pread" or "close"."""
    region: Region | None = None
    for line in sys.stdin:
        match line.split():
            case ["open", "shared" | "private" as mode]:
                region = Region.open(path, mode=mode)
                print("ok", flush=True)
            case ["pread"] if region:
                print(region.pread(8, 0), flush=True)
            case ["close"] if region:
                region.close()
                print("ok", flush=True)


def compare(path: str, mode: Literal["shared", "private"], text: bytes) -> None:
    """Writes `text` in this shell; shows what each shell and the file say then."""
    command = [sys.executable, __file__, path]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        Region.open(path, mode=mode) as region,
    ):
        assert other.stdin
        assert other.stdout
        to, answers = other.stdin, other.stdout

        def ask(line: str) -> str:
            print(line, file=to, flush=True)
            return answers.readline().strip()

        print(f'mode="{mode}"')
        ask(f"open {mode}")
        region.pwrite(text, 0)
        print(f"  shell 1 writes  {text!r}")
        print(f"  shell 1 reads   {region.pread(8, 0)!r}")
        print(f"  shell 2 reads   {ask('pread')}")
        ask("close")
        with open(path, "rb") as file:
            print(f"  the file holds  {file.read(8)!r}")
        to.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "q.bin")
        # auto_unlink: when this handle is closed, the file goes.
        with Region.open(path, 128, auto_unlink=True):
            compare(path, "shared", b"abcdefg\n")
        # mode="private" changes no file, so it does not make one either.
        with Region.open(path, 128, auto_unlink=True):
            compare(path, "private", b"1234567\n")
        print(f"left behind: {os.listdir(folder)}")


if __name__ == "__main__":
    shell_2(sys.argv[1]) if len(sys.argv) > 1 else main()
