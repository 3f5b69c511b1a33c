"""Point fits by Huber loss with a bootstrap, the way the papers make them."""

from tunecast.models.pointfits.fit import PointFit as PointFit
from tunecast.models.pointfits.fit import fit_point as fit_point
from tunecast.models.pointfits.resampling import Bootstrap as Bootstrap
from tunecast.models.pointfits.resampling import bootstrap as bootstrap
