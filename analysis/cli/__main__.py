"""Runs the command line by ``python -m tunecast.analysis.cli``."""

from tunecast.analysis.cli.application import main

if __name__ == "__main__":
    main()
