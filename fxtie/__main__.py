"""`python -m fxtie`: the command line, see `cli.py`."""

import sys

from fxtie.cli import main

if __name__ == "__main__":
    sys.exit(main())
