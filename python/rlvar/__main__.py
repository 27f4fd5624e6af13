"""``python -m rlvar`` is the command line."""

import sys

from rlvar.cli import main

sys.exit(main())
