"""The columns of a run table, declared once: one row for each fine-tuning run.

What is counted. ``model_size`` counts the parameters of the base model; state in the table's own
notes whether embeddings are among them, and count the same way in every row. ``pet_params`` counts
the parameters that fine-tuning trains beside a frozen base, 0 for full fine-tuning.
``finetune_examples`` counts unique examples seen, not examples times epochs. ``loss`` is the mean
cross-entropy of a held-out test set in nats per target token: perplexity is ``exp(loss)``, bits
are nats divided by ``ln 2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from tunecast.models.runs.checks import checked
from tunecast.models.runs.domains import LABEL, NON_NEGATIVE, POSITIVE, WHOLE, Domain, one_of

STATUSES = ("done", "diverged", "failed")
ORIGINS = ("measured", "simulated")


def declared(domain: Domain, unit: str, meaning: str) -> dict[str, Any]:
    """Return the metadata of one field of `Run`."""
    return {"domain": domain, "unit": unit, "meaning": meaning}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One fine-tuning run: a row of the run table.

    The fields are the table's columns; `column_table` prints them with units and meanings.
    Fields without a default must be given, ``loss=None`` where ``status`` is not ``"done"``.

    Raises
    ------
    TunecastError
        If a value is outside its column's domain.
    """

    run_id: str = field(metadata=declared(LABEL, "", "unique name of the run"))
    task: str = field(metadata=declared(LABEL, "", "what was learned, e.g. `wmt14-en-de`"))
    method: str = field(
        metadata=declared(
            LABEL, "", "how: `fmt` (full fine-tuning), `lora`, `prompt`, or any label"
        )
    )
    base_model: str | None = field(
        default=None,
        metadata=declared(LABEL, "", "checkpoint name; empty: a checkpoint of the row's own"),
    )
    family: str | None = field(
        default=None,
        metadata=declared(LABEL, "", "models whose losses compare, because they share a tokenizer"),
    )
    model_size: float | None = field(
        default=None,
        metadata=declared(
            POSITIVE, "parameters", "size of the base model, counted alike everywhere"
        ),
    )
    pretrain_tokens: float | None = field(
        default=None,
        metadata=declared(POSITIVE, "tokens", "seen by the base model in pre-training"),
    )
    pet_params: float | None = field(
        default=None,
        metadata=declared(NON_NEGATIVE, "parameters", "trainable ones; 0 for full fine-tuning"),
    )
    finetune_examples: float | None = field(
        default=None,
        metadata=declared(NON_NEGATIVE, "examples", "unique examples seen; 0 is zero-shot"),
    )
    loss: float | None = field(
        metadata=declared(
            POSITIVE, "nats per target token", "held-out test cross-entropy; PPL is exp(loss)"
        )
    )
    loss_se: float | None = field(
        default=None,
        metadata=declared(NON_NEGATIVE, "nats", "sampling error of the test set, not fitted"),
    )
    seed: int | None = field(
        default=None, metadata=declared(WHOLE, "", "seed of the run, told apart in replicates")
    )
    status: str = field(
        default="done",
        metadata=declared(one_of(STATUSES), "", "how it ended; only `done` rows have a loss"),
    )
    origin: str = field(
        default="measured",
        metadata=declared(one_of(ORIGINS), "", "whether it was trained or drawn from a law"),
    )
    train_flops: float | None = field(
        default=None, metadata=declared(NON_NEGATIVE, "FLOP", "cost of training")
    )
    gpu_seconds: float | None = field(
        default=None, metadata=declared(NON_NEGATIVE, "seconds", "cost of training, all devices")
    )
    tokens_per_second: float | None = field(
        default=None,
        metadata=declared(POSITIVE, "tokens / second", "trained on, evaluation not counted"),
    )
    mfu: float | None = field(
        default=None,
        metadata=declared(
            NON_NEGATIVE, "", "share of the devices' peak FLOP a second that training used"
        ),
    )

    def __post_init__(self) -> None:
        """Reject values outside their domains."""
        row = pd.DataFrame([asdict(self)], dtype=object)
        checked(row, [f"run {self.run_id!r}"], DOMAINS, REQUIRED)


COLUMNS: Mapping[str, Mapping[str, Any]] = {item.name: item.metadata for item in fields(Run)}
DOMAINS: Mapping[str, Domain] = {name: about["domain"] for name, about in COLUMNS.items()}
REQUIRED = ("run_id", "task", "method", "loss")


def column_table() -> str:
    """Return the columns of the run table as a Markdown table, for people."""
    lines = ["| column | unit | values | meaning |", "|---|---|---|---|"]
    for name, about in COLUMNS.items():
        needed = " (required)" if name in REQUIRED else ""
        values = DOMAINS[name].expected
        lines.append(f"| `{name}`{needed} | {about['unit']} | {values} | {about['meaning']} |")
    return "\n".join(lines) + "\n"
