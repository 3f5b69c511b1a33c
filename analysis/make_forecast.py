"""How well do small models forecast the largest one? The job of 'make forecast'.

python analysis/make_forecast.py [FOLDER]    (default: forecasts/)

For each embedded table: fit the runs without the largest model, forecast the runs of the largest,
and lay beside each forecast what the run reached. Prints the answers and leaves tables, fits and
pictures in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tunecast.analysis.plots.best import best_figure
from tunecast.analysis.plots.forecast import forecast_figure
from tunecast.analysis.plots.frame import save_figure
from tunecast.analysis.report.contents import contents
from tunecast.analysis.report.page import write_html
from tunecast.analysis.tables import banners, show, write_table
from tunecast.models import Fit, fit, read_runs, score_draws
from tunecast.models.files import write_atomically

# The simulated runs obey the paper's law in the paper's cells, so that is what is fitted to them.
TABLES: dict[str, dict[str, Any]] = {
    "ladder": {},
    "zhang2024-simulated": {
        "law": "multiplicative",
        "cell": ("task", "method"),
    },
}
TARGET = ["task", "method", "family", "model_size", "finetune_examples"]


def main(out: Path = Path("forecasts"), *, seed: int = 0, **options: Any) -> None:
    """Make every forecast; ``options`` go to `tunecast.models.fit`."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = {}
    for table, asked in TABLES.items():
        numbers[table] = forecast_the_largest(table, out, seed=seed, **(asked | options))
    text = json.dumps(numbers, indent=1) + "\n"
    write_atomically(out / "numbers.json", lambda path: path.write_text(text))
    print(f"Reports (.html), tables (.csv), fits (.nc) and pictures (.png) are in {out}/.")


def forecast_the_largest(
    table: str, out: Path, *, seed: int = 0, **options: Any
) -> dict[str, object]:
    """Fit an embedded table without its largest model, forecast that, and return what came out."""
    runs = read_runs(table, columns=["model_size", "finetune_examples"])
    is_largest = runs["model_size"] == runs["model_size"].max()
    reached = runs[is_largest].reset_index(drop=True)
    result = fit(
        runs[~is_largest],
        seed=seed,
        progress=sys.stderr.isatty(),
        allow_unconverged=True,  # what did not converge is shown and marked
        **options,
    )
    result.save(out / f"{table}.nc")
    write_html(contents(result), out / f"{table}.html")

    targets = reached[["run_id", *TARGET]]  # no base model: the largest is one not seen before
    forecasts = result.forecast(targets).assign(reached=reached["loss"])
    groups = reached[[c for c in ("task", "method") if reached[c].nunique() > 1]]
    scores = score_draws(result.draws(targets), reached["loss"].to_numpy(float), groups)
    best = _compared(result, reached)
    for name, frame in (("forecast", forecasts), ("scores", scores), ("best", best)):
        write_table(frame, out / f"{table}-{name}.csv")
    save_figure(forecast_figure(result, targets, heldout=reached), out / f"{table}.png")
    save_figure(best_figure(result, targets), out / f"{table}-best.png")
    _print(table, result, forecasts, scores, best)

    inside = {
        f"inside{share}": int(reached["loss"].between(forecasts[low], forecasts[high]).sum())
        for share, low, high in ((50, "loss_q25", "loss_q75"), (90, "loss_q05", "loss_q95"))
    }
    error = (forecasts["loss_q50"] - reached["loss"]).abs().median()
    return {
        "origin": ", ".join(runs["origin"].unique()),
        "fitted": len(result.runs),
        "forecast": len(reached),
        **inside,
        "median_error": round(float(error), 4),
        "converged": result.diagnostics.converged,
    }


def _compared(result: Fit, reached: pd.DataFrame) -> pd.DataFrame:
    """Compare the methods at the ends and in the middle of each task's data sizes."""
    places = []
    for _, runs in reached.groupby("task", sort=False):
        sizes = sorted(runs["finetune_examples"].unique())
        row = runs[["task", "family", "model_size"]].head(1)
        some = pd.DataFrame({"finetune_examples": sizes[:: max(1, (len(sizes) - 1) // 2)]})
        places.append(row.merge(some, how="cross"))
    return result.compare(pd.concat(places, ignore_index=True))


def _print(
    table: str, result: Fit, forecasts: pd.DataFrame, scores: pd.DataFrame, best: pd.DataFrame
) -> None:
    found = result.diagnostics
    marks = banners(
        converged=found.converged, simulated=result.info["simulated"], reasons=found.reasons
    )
    size = forecasts["model_size"].iloc[0]
    print(f"\n=== {table}: fitted to {len(result.runs)} runs of smaller models ===")
    print(
        f"largest R-hat {found.rhat_max:.3f}, smallest effective sample "
        f"{min(found.ess_bulk_min, found.ess_tail_min):.0f}, {found.divergences} divergences"
    )
    shown = {
        "task": "task",
        "method": "method",
        "finetune_examples": "examples",
        "loss_q05": "5 %",
        "loss_q50": "median",
        "loss_q95": "95 %",
        "reached": "reached",
        "extrapolation": "times beyond data",
    }
    curves = forecasts.groupby(["task", "method"], sort=False)
    some = pd.concat([curves.head(1), curves.tail(1)]).sort_index()
    title = f"Loss at {size:,.0f} parameters: forecast and reached, ends of each curve"
    show(some, title=title, columns=shown, warnings=marks)
    covered = ("cover50", "cover80", "cover90", "cover95")
    columns = {name: name for name in ("group", "n", "crps", "rmse", "bias", *covered)}
    show(scores, title="Scores of log loss; share of runs inside each interval", columns=columns)
    wide = best.pivot_table("p_best", ["task", "finetune_examples"], "method", sort=False)
    columns = {"task": "task", "finetune_examples": "examples"}
    columns |= {f"p_best {method}": str(method) for method in wide}
    title = f"Probability of the lowest loss at {size:,.0f} parameters"
    show(wide.add_prefix("p_best ").reset_index(), title=title, columns=columns)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
