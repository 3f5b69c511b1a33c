"""Conditions on the columns of a table, as users write them."""

from __future__ import annotations

import pandas as pd
from pandas.api.types import is_bool_dtype

from tunecast.models.errors import TunecastError, one_line


def where(frame: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows of ``frame`` for which ``expression`` holds; the index is kept.

    Parameters
    ----------
    frame : DataFrame
        A run table, or any table.
    expression : str
        A condition on columns in the language of pandas, such as
        ``"finetune_examples <= 25600 and method != 'prompt'"``.

    Raises
    ------
    TunecastError
        If the expression cannot be read, names a column that is not there, or is no condition.
    """
    shown = " ".join(expression.split())
    try:
        # Empty scopes: '@name' must not reach into the variables of the calling code.
        holds = frame.eval(expression, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        has = ", ".join(str(c) for c in frame.columns)
        raise TunecastError(
            f"in the condition '{shown}', {error}; the columns are: {has}."
        ) from None
    except Exception as error:  # the parser raises what Python's and pandas' own parsers raise
        raise TunecastError(
            f"the condition '{shown}' cannot be evaluated: {one_line(error)}."
        ) from error
    if not isinstance(holds, pd.Series) or not is_bool_dtype(holds):
        raise TunecastError(
            f"'{shown}' is no condition; write one such as 'finetune_examples <= 25600'."
        )
    return frame[holds.fillna(False).to_numpy(dtype=bool)]
