"""``python -m nmstep.cli`` is ``nmstep``."""

import sys

from nmstep.cli import main

if __name__ == "__main__":
    sys.exit(main())
