"""``python -m offrl``: the command, for launchers that start modules, such as torchrun."""

import sys

from offrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
