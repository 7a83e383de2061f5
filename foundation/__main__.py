"""``python -m foundation`` is the console command."""

import sys

from foundation.cli import main

if __name__ == "__main__":  # processes that a command starts import this file under another name
    sys.exit(main())
