"""``python -m mmapds`` and the ``mmapds`` command: both are `mmapds.cli.main`."""

import sys

from mmapds.cli import main

if __name__ == "__main__":
    sys.exit(main())
