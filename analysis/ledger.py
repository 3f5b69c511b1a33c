"""The forecast ledger: dated forecasts in one file, scored together as their runs land."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.analysis.tables import TableError, read_table, write_table
from tunecast.models.files import locked
from tunecast.models.scoring import matched, score_table

# When a forecast was filed, from which fit, and its place in the file.
FILED = "forecast_at"
FIT = "fit_digest"


def file_forecast(
    path: Path, forecast: pd.DataFrame, *, digest: str, now: datetime | None = None
) -> int:
    """Add forecasts to a ledger, with their date and the digest of the fitted runs.

    Parameters
    ----------
    path : Path
        A CSV or Parquet file, made if there is none.
    forecast : DataFrame
        From `Fit.forecast`.
    digest : str
        Of the runs behind the fit.
    now : datetime, optional
        The time that is written; the clock's otherwise.

    Returns
    -------
    int
        How many forecasts the ledger now holds.

    Raises
    ------
    TableError
        When the file is there and no ledger.
    """
    stamp = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    dated = forecast.assign(**{FILED: stamp, FIT: digest})
    dated = dated[[FILED, FIT, *forecast.columns]]
    with locked(path):
        if path.exists():
            dated = pd.concat([read_ledger(path), dated], ignore_index=True)
        write_table(dated, path)
    return len(dated)


def read_ledger(path: Path) -> pd.DataFrame:
    """Return the forecasts of a ledger.

    Raises
    ------
    TableError
        When there is no such file, or it is no ledger.
    """
    table = read_table(path)
    if absent := [c for c in (FILED, FIT) if c not in table]:
        raise TableError(f"'{path}' is no ledger: it has no column '{absent[0]}'.")
    return table


def track_record(ledger: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame | None:
    """Return the scores of all forecasts whose runs have landed, by the day of the forecast.

    A forecast is dropped where its runs were among the fitted ones: those with the same digest
    learned from them. None if no run has landed.
    """
    day = ledger[FILED].astype(str).str[:10]
    try:
        matched(ledger, runs)
    except ValueError:
        return None
    scores: dict[str, Any] = score_table(ledger.assign(day=day), runs, ("day",))
    keep = ["group", "n", "crps", "rmse", "bias", "log_score", "cover50", "cover90"]
    return pd.DataFrame(scores)[keep]
