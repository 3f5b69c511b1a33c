"""Bayesian experimental design: which runs to make next, by expected information gain.

Every estimate comes from one set of joint posterior predictive draws of candidates and goal. Two
estimators share it: regression (`conditional_gains`), which chooses batches, and nested Monte Carlo
(`NestedMonteCarlo`), which linearises nothing and checks it.
"""

from tunecast.models.planning.batch import Batch as Batch
from tunecast.models.planning.fitted import FittedModel as FittedModel
from tunecast.models.planning.plans import NothingToTell as NothingToTell
from tunecast.models.planning.plans import Plan as Plan
from tunecast.models.planning.plans import plan as plan
