"""The forecast ledger: dated forecasts in one file, scored together as their runs land."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from tunecast.analysis.tables import read_table, write_table
from tunecast.models import Fit
from tunecast.models.errors import TunecastError
from tunecast.models.files import locked
from tunecast.models.questions.scoring import matched, score_table

# When a forecast was filed, from which runs, and whether one of them already lay at its place.
FILED, DIGEST, SEEN = "forecast_at", "fit_digest", "was_fitted"
SCORES = ["group", "n", "crps", "rmse", "bias", "log_score", "cover50", "cover90"]


def file_forecast(path: Path, forecast: pd.DataFrame, fit: Fit, now: datetime | None = None) -> int:
    """Add forecasts to a ledger, each with its date and the digest of the fitted runs.

    Parameters
    ----------
    path : Path
        A CSV or Parquet file, made if there is none.
    forecast : DataFrame
        From `Fit.forecast`.
    fit : Fit
        Where it is from.
    now : datetime, optional
        The time that is written; the clock's otherwise.

    Returns
    -------
    int
        How many forecasts the ledger now holds.

    Raises
    ------
    TunecastError
        When the file is there and no ledger.
    """
    stamp = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    dated = forecast.assign(**{FILED: stamp, DIGEST: str(fit.info.get("digest", ""))})
    dated[SEEN] = _has_run(forecast, fit.runs)
    dated = dated[[FILED, DIGEST, SEEN, *forecast.columns]]
    with locked(path):
        if path.exists():
            dated = pd.concat([read_ledger(path), dated], ignore_index=True)
        write_table(dated, path)
    return len(dated)


def _has_run(forecast: pd.DataFrame, runs: pd.DataFrame) -> list[bool]:
    numbered = forecast.assign(_row=range(len(forecast)))
    try:
        found = set(matched(numbered, runs)["_row"])
    except ValueError:
        found = set()
    return [row in found for row in range(len(forecast))]


def is_ledger(table: pd.DataFrame) -> bool:
    """Whether a table is a ledger and not a plain forecast."""
    return {FILED, DIGEST, SEEN} <= set(table.columns)


def read_ledger(path: Path) -> pd.DataFrame:
    """Return the forecasts of a ledger.

    Raises
    ------
    TunecastError
        When there is no such file, or it is no ledger.
    """
    table = read_table(path)
    if not is_ledger(table):
        raise TunecastError(f"'{path}' is no ledger: 'tunecast forecast --ledger' makes one.")
    return table


def open_forecasts(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the forecasts whose runs had not been made when they were filed, with their day."""
    seen = ledger[SEEN].astype(str).str.lower() == "true"
    return ledger[~seen].assign(day=ledger[FILED].astype(str).str[:10])


def track_record(ledger: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of the forecasts whose runs have landed since, over all and by day.

    No rows if none has.
    """
    try:
        scores = score_table(open_forecasts(ledger), runs, ("day",))
    except ValueError:
        return pd.DataFrame(columns=SCORES)
    return scores[SCORES]
