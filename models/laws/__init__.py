"""The scaling laws: formulas, published parameters, tables drawn from them."""

from tunecast.models.laws.catalogue import LAWS as LAWS
from tunecast.models.laws.catalogue import get_law as get_law
from tunecast.models.laws.law import Law as Law
from tunecast.models.laws.law import Parameter as Parameter
