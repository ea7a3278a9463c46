"""`python -m vcutils`."""

import sys

from vcutils.cli import main

if __name__ == "__main__":
    sys.exit(main())
