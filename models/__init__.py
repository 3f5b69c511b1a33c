"""What we believe: the run table, the laws, the priors, the hierarchy, and what follows.

The names below are the public surface. Importing them is light: what samples is
loaded when a fit starts.
"""

from tunecast.models.design import Plan as Plan
from tunecast.models.design import plan as plan
from tunecast.models.fits import Diagnostics as Diagnostics
from tunecast.models.fits import Fit as Fit
from tunecast.models.fits import UnconvergedError as UnconvergedError
from tunecast.models.fits import load_fit as load_fit
from tunecast.models.inference import fit as fit
from tunecast.models.laws import LAWS as LAWS
from tunecast.models.laws import Law as Law
from tunecast.models.laws import get_law as get_law
from tunecast.models.layout import FitError as FitError
from tunecast.models.pointfit import bootstrap as bootstrap
from tunecast.models.pointfit import fit_point as fit_point
from tunecast.models.pointfit import fit_two_stage as fit_two_stage
from tunecast.models.predict import Draws as Draws
from tunecast.models.priors import PRIORS as PRIORS
from tunecast.models.questions import backtest as backtest
from tunecast.models.questions import compare as compare
from tunecast.models.questions import crossover as crossover
from tunecast.models.questions import forecast as forecast
from tunecast.models.questions import targets_grid as targets_grid
from tunecast.models.runs import Run as Run
from tunecast.models.runs import RunTableError as RunTableError
from tunecast.models.runs import append_run as append_run
from tunecast.models.runs import read_runs as read_runs
from tunecast.models.runs import warn_about as warn_about
from tunecast.models.runs import where as where
from tunecast.models.scoring import score_draws as score_draws
from tunecast.models.scoring import score_table as score_table
