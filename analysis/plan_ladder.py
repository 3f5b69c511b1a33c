"""How soon do planned runs tell which method wins on the largest model? Fit, plan, run, again.

python analysis/plan_ladder.py [OUT]    (some minutes; writes OUT/rounds.csv and OUT/plan.png)

The embedded ladder plays the laboratory. At the start the runs of its smaller models on at most 200
examples are known, one task of it. In each round the fit plans what to run next for a tenth of the
cost of all the rest, at 6ND; those runs are looked up in the table instead of being made, and the
fit is made again. Asked is which method wins on the largest model with the most examples, of which
the table holds the answer. What the plan promised stands beside what came.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from tunecast.analysis.plots.frame import save_figure
from tunecast.analysis.plots.plan import plan_figure
from tunecast.analysis.tables import write_table
from tunecast.models import fit, plan, read_runs

TASK, FEW = "debian-en-de", 200
ROUNDS, SHARE, RUNS = 3, 0.1, 4


def main(out: Path = Path("forecasts/plan"), *, seed: int = 0) -> None:
    """Go through the rounds, print and save what each one planned, paid and learned."""
    out.mkdir(parents=True, exist_ok=True)
    # The winner itself stays unseen to the last: its runs at the target are not for sale.
    ladder = read_runs("ladder")
    ladder = ladder[(ladder["finetune_examples"] > 0) & (ladder["status"] == "done")]
    ladder = ladder[ladder["task"] == TASK]
    largest = ladder["model_size"] == ladder["model_size"].max()
    answer = largest & (ladder["finetune_examples"] == ladder["finetune_examples"].max())
    place = ["task", "base_model", "model_size", "finetune_examples"]
    target = ladder.loc[answer, place].head(1).reset_index(drop=True)
    shelf = ladder[~answer].reset_index(drop=True)
    known = shelf[~largest[~answer].to_numpy() & (shelf["finetune_examples"] <= FEW)]
    budget = SHARE * 6 * float((shelf["model_size"] * shelf["finetune_examples"]).sum())
    rows, spent = [], 0.0
    for number in range(ROUNDS + 1):
        result = fit(known, seed=seed, progress=False, allow_unconverged=True)
        compared = result.compare(target)
        best = compared.sort_values("p_best").iloc[-1]
        forecast = result.forecast(target.merge(compared[["method"]], how="cross"))
        rows.append(
            {
                "round": number,
                "runs": len(known),
                "spent": spent,
                "best": best["method"],
                "p_best": best["p_best"],
                "expected_regret": best["expected_regret"],
                "width": (forecast["loss_q95"] - forecast["loss_q05"]).mean(),
                "converged": result.diagnostics.converged,
            }
        )
        if number < ROUNDS:
            rest = shelf[~shelf["run_id"].isin(known["run_id"])].drop(columns=["loss"])
            next_ = plan(
                result, rest, targets=target, budget=budget, runs=RUNS, cost="6ND", seed=seed,
                allow_unconverged=True,
            )  # fmt: skip
            if number == 0:
                save_figure(plan_figure(result, next_), out / "plan.png")
            bought = shelf[shelf["run_id"].isin(next_.runs["run_id"])]
            known = pd.concat([known, bought], ignore_index=True)
            last = next_.runs.iloc[-1]
            spent += float(last["cumulative_cost"])
            rows[-1] |= {
                "planned": ", ".join(next_.runs["run_id"]),
                "promised_p_right": last["p_right_after"],
                "promised_width": last["width_after"],
            }
        table = pd.DataFrame(rows)
        write_table(table, out / "rounds.csv")
        print(table.tail(1).T.to_string(header=False), flush=True)
    won = ladder[answer].groupby("method")["loss"].mean()
    print(f"in the table {won.idxmin()} wins: {won.round(3).to_dict()}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
