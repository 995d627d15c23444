"""`python -m tttnn` is the command `tttnn`; launchers start it so: `torchrun -m tttnn`."""

import sys

from tttnn.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
