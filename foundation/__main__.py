"""``python -m foundation`` is the console command."""

import sys

from foundation.cli import main

sys.exit(main())
