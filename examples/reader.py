"""Read the value that writer.py, or a Rust program with the crate mmap-sync, published.

    python examples/reader.py [PREFIX]

It prints ``version: 7 messages: ["Hello", "World", "!"]``.
"""

from __future__ import annotations

import sys

from common import HelloWorldCodec, prefix_from_arguments

import mmapds


def main() -> None:
    prefix = prefix_from_arguments()
    with mmapds.Synchronizer(prefix, protocol="mmap-sync", codec=HelloWorldCodec()) as s:
        try:
            # Inside the `with`, this process is counted as a reader of this version, and r.data
            # is the shared memory itself. r.value is decoded from it and may be kept.
            with s.read() as r:
                value = r.value
        except mmapds.NotInitialised:
            sys.exit(f"nothing is published at {prefix}: run writer.py first")
    print(value)


if __name__ == "__main__":
    main()
