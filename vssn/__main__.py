"""python -m vssn: the command `vssn`."""

import sys

from vssn.cli import main

sys.exit(main())
