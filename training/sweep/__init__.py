"""A sweep: every run of a recipe that the table does not hold yet, one row as each ends.

Each worker is a process with one thread. It takes a cell, makes its runs one after the other and
appends their rows itself, so that whatever stops the sweep costs no more than the runs under way;
those keep their state too, if they are long, and go on from it. On Ray workers hand their rows to
the one process that writes.
"""

from tunecast.training.sweep.costs import forecast_cost as forecast_cost
from tunecast.training.sweep.make import Summary as Summary
from tunecast.training.sweep.make import sweep as sweep
from tunecast.training.sweep.plans import planned as planned
from tunecast.training.sweep.preparation import prepare_all as prepare_all
