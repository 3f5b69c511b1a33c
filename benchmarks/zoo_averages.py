"""What the zoo says of each forecaster over its tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

ENOUGH = 20  # held-out rows without which the coverage of a table says little
DISTANCES = ("<= 2x", "<= 8x", "> 8x")
LEAST = 5  # rows at a distance without which a table does not count there


def averages(rows: Sequence[Mapping[str, Any]], on: Collection[str] | None = None) -> pd.DataFrame:
    """Return a line for each forecaster: means over the tables that it could do.

    Parameters
    ----------
    rows : sequence of mapping
        Those of ``zoo.json``.
    on : collection of str, optional
        The tables that count; all unless given.
    """
    lines = {}
    for name, some in _by_forecaster(rows).items():
        done = [r for r in some if "scores" in r and (on is None or r["table"] in on)]
        every = pd.DataFrame([r["scores"][0] for r in done])
        line: dict[str, Any] = {"tables": len(done), "of": len(some)}
        if done:
            enough = every[every["n"] >= ENOUGH]
            line |= {name: every[name].mean() for name in ("cover50", "cover90")}
            line["worst90"] = enough["cover90"].min()
            line |= {f"cover90 {d}": _cover_at(done, d) for d in DISTANCES}
            line |= {name: every[name].mean() for name in ("crps", "log_score")}
            # One confident miss is enough to rule the mean.
            line["median log"] = every["log_score"].median()
        line["seconds"] = pd.Series([r["seconds"] for r in some]).median()
        line["peak_mib"] = max(r["peak_mib"] for r in some)
        lines[name] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def done_by_all(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tables that every forecaster with any forecast could do."""
    done = [{r["table"] for r in some if "scores" in r} for some in _by_forecaster(rows).values()]
    common = set.intersection(*filter(None, done)) if any(done) else set()
    return [name for name in dict.fromkeys(r["table"] for r in rows) if name in common]


def winners(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return for each table who has the lowest CRPS and who the highest log score."""
    lines: dict[str, dict[str, Any]] = {}
    for table in dict.fromkeys(r["table"] for r in rows):
        scored = {
            r["forecaster"]: r["scores"][0] for r in rows if r["table"] == table and "scores" in r
        }
        if scored:
            crps = min(scored, key=lambda name: scored[name]["crps"])
            log_score = max(scored, key=lambda name: scored[name]["log_score"])
            lines[table] = {
                "lowest CRPS": crps,
                "crps": scored[crps]["crps"],
                "highest log score": log_score,
                "log_score": scored[log_score]["log_score"],
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return all of it as text."""
    if not any("scores" in r for r in rows):
        return "no forecasts yet"
    common = done_by_all(rows)
    won = winners(rows)
    parts = [
        "Means over the tables that each could do:",
        averages(rows).round(3).to_string(),
        f"\nMeans over the {len(common)} tables that all could do:",
        averages(rows, common).round(3).to_string(),
        "\nWho wins each table:",
        won.round(4).to_string(),
        "\nTables won by CRPS:",
        won["lowest CRPS"].value_counts().to_string(),
        "\nTables won by log score:",
        won["highest log score"].value_counts().to_string(),
    ]
    return "\n".join(parts)


def _by_forecaster(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["forecaster"], []).append(row)
    return found


def _cover_at(done: Sequence[Mapping[str, Any]], distance: str) -> float:
    """Return the mean over tables of the coverage of the 90 % intervals at a distance."""
    scores = [
        s["cover90"]
        for row in done
        for s in row["scores"]
        if s["group"] == f"distance={distance}" and s["n"] >= LEAST
    ]
    return float(pd.Series(scores, dtype=float).mean())
