"""`python -m lgd.preflight`."""

import sys

from lgd.preflight.command import main

if __name__ == "__main__":
    sys.exit(main())
