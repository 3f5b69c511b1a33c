"""What a reader of a checked run table should know before trusting a fit to it."""

from __future__ import annotations

import math

import pandas as pd

from tunecast.models.runs.summary import describe

# Guessing uniformly costs ln(vocabulary): 10.4 nats for 32,000 entries, 12.5 for 256,000, the
# largest in use. A task whose median run is above 12 does worse than a guess, or is in PPL.
GUESSING_NATS = 12.0

# Other held-out losses that tables keep, which should be near ``loss``. A training loss need not
# be: an overfitted one is near 0, as the logarithm of a small loss is.
HELD_OUT_LOSSES = ("dev_loss", "val_loss", "valid_loss", "validation_loss", "eval_loss")


def warn_about(frame: pd.DataFrame) -> list[str]:
    """Return what a reader of a checked table should know before trusting a fit to it.

    Parameters
    ----------
    frame : DataFrame
        From `read_runs`.

    Returns
    -------
    list of str
        One sentence each, none if there is nothing to say. Reported are runs that failed or
        diverged, zero-shot rows, simulated rows, and losses that look like perplexities by
        either of two signs: the median ``done`` row of a task is above 12 nats, more than
        guessing uniformly from any vocabulary in use costs; or another column shows it, a
        perplexity column that equals ``loss``, or a development loss that is nearer by far to its
        logarithm.
    """
    done = frame[frame["status"] == "done"]
    counts = describe(frame)
    warned = [
        f"{counts[status]} of {len(frame)} runs {status}; they have no loss and no part in a fit."
        for status in ("diverged", "failed")
        if counts[status]
    ]
    simulated = int((frame["origin"] == "simulated").sum())
    if simulated:
        warned.append(f"{simulated} of {len(frame)} runs are simulated, not measured.")
    if "finetune_examples" in done:
        zero_shot = int((done["finetune_examples"] == 0).sum())
        if zero_shot:
            warned.append(
                f"{zero_shot} runs are zero-shot (finetune_examples is 0), where a power of the "
                "data size has no value."
            )
    return warned + _perplexity_signs(done)


def _perplexity_signs(done: pd.DataFrame) -> list[str]:
    medians = done.groupby("task")["loss"].median()
    advice = "if so, give its natural logarithm"
    signs = [
        f"the median loss of task '{task}' is {median:.4g} nats, worse than guessing: "
        f"it looks like a perplexity; {advice}."
        for task, median in medians[medians > GUESSING_NATS].items()
    ]
    for name in done.columns.drop("loss"):
        other = pd.to_numeric(done[name], errors="coerce")
        if _is_perplexity(name) and _typical_gap(other, done["loss"]) < 0.01:
            signs.append(f"loss equals the column '{name}': it looks like a perplexity; {advice}.")
        elif name in HELD_OUT_LOSSES and (
            _typical_gap(done["loss"].map(math.log), other) < _typical_gap(done["loss"], other) / 2
        ):
            signs.append(
                f"the logarithm of loss is nearer to '{name}' than loss is: "
                f"it looks like a perplexity; {advice}."
            )
    return signs


def _is_perplexity(name: str) -> bool:
    return any(part in ("ppl", "perplexity") for part in name.lower().split("_"))


def _typical_gap(a: pd.Series, b: pd.Series) -> float:
    """Return the median absolute difference, NaN where nothing can be compared."""
    return float((a - b).abs().median())
