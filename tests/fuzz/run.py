"""The command that feeds damaged files to every parser and opener: see `fuzzing.py`, or ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzzing

if __name__ == "__main__":
    sys.exit(fuzzing.main())
