"""``python -m clit_basicsr`` is the command ``basicsr``."""

import sys

from clit_basicsr.cli import main

if __name__ == '__main__':  # worker processes that are spawned import this file
    sys.exit(main())
