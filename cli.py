"""The command line of mmflow: `python cli.py --help`."""

import sys

from mmflow import processes, signals

if __name__ == "__main__":
    signals.install()  # before the heavy imports, so that a signal in the first seconds ends the run properly
    try:
        from mmflow.cli import main

        code = main(sys.argv[1:])
    finally:
        processes.end_children()
    sys.exit(code)
