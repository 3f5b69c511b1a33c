"""What a table of runs must have at least for a law, said in a sentence where it has less."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tunecast.models.errors import TunecastError


def refuse_too_few(runs: pd.DataFrame, data: str, factors: Sequence[str]) -> None:
    """Refuse runs that say nothing of some part of the law.

    Parameters
    ----------
    runs : DataFrame
        Usable runs.
    data : str
        Column that serves as the data axis.
    factors : sequence of str
        Columns that serve as factors.

    Raises
    ------
    TunecastError
        When there are too few runs or sizes for the law asked for.
    """
    n = len(runs)
    if n < 2:
        raise TunecastError(
            f"the table has {n} usable run{'s' if n != 1 else ''} (status done, "
            f"{data} above 0): a fit needs at least three data sizes"
        )
    for name in factors:
        values = runs[name]
        if not (values > 0).all():
            raise TunecastError(
                f"factor '{name}' must be above 0 on every run used, and is "
                f"{values[~(values > 0)].iloc[0]} on {int((~(values > 0)).sum())} of them"
            )
        if values.nunique() == 1:
            raise TunecastError(
                f"every run has {name} = {values.iloc[0]:g}: its exponent alpha cannot be "
                "learned from one value; leave the factor out (law power, or factors none)"
            )
    if runs[data].nunique() < 3:
        sizes = sorted(runs[data].unique())
        raise TunecastError(
            f"the runs used have {len(sizes)} value(s) of {data} "
            f"({', '.join(f'{s:g}' for s in sizes)}): the law needs at least three"
        )
