"""Publish one value for other processes, Rust programs with the crate mmap-sync among them.

    python examples/writer.py [PREFIX]

It prints ``written: 36 bytes | reset: false`` and leaves PREFIX_state (16 bytes) and one data file;
each run switches between PREFIX_data_0 and PREFIX_data_1. Then run reader.py, as often as you like.
"""

from __future__ import annotations

from common import HelloWorld, HelloWorldCodec, prefix_from_arguments

import mmapds


def main() -> None:
    prefix = prefix_from_arguments()
    value = HelloWorld(version=7, messages=["Hello", "World", "!"])

    # protocol="mmap-sync" shares files with Rust. Without it, you get the protocol for Python
    # processes, which does more (see the guide), in files of other names.
    with mmapds.Synchronizer(prefix, protocol="mmap-sync", codec=HelloWorldCodec()) as s:
        # Readers go on with the version before. If one is still in the version before that, wait
        # up to a second for it, then take it for dead: that is what `reset` tells.
        result = s.write(value, grace=1.0)

    print(f"written: {result.size} bytes | reset: {str(result.reset).lower()}")


if __name__ == "__main__":
    main()
