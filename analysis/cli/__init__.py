"""The command line: one command for each question, a thin shell on `tunecast.models`."""

from tunecast.analysis.cli.application import app as app
from tunecast.analysis.cli.application import main as main
