"""`python -m tttnn` is the command `tttnn`, for launchers: `torchrun -m tttnn`."""

import sys

from tttnn.cli import main


if __name__ == "__main__":
    sys.exit(main())
