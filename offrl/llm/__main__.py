"""``python -m offrl.llm``: what launchers of several processes start; the same as ``offrl llm``, and ``resume``."""

import sys

from offrl.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments if arguments[:1] == ["resume"] else ["llm", *arguments]))
