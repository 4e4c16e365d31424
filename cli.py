"""The command line of mmflow: `python cli.py --help`."""

import sys

from mmflow import signals

if __name__ == "__main__":
    signals.install()  # before the heavy imports, so that a signal in the first seconds ends the run properly
    from mmflow.cli import main

    sys.exit(main(sys.argv[1:]))
