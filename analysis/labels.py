"""What columns, numbers and methods are called, and their colours, on every picture and page."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's colours, which people with any colour vision tell apart; yellow, too pale for a
# line on white, is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, VERMILION = PALETTE[:2]
USUAL = {"fmt": PALETTE[0], "lora": PALETTE[1], "prompt": PALETTE[2]}

AXIS_NAMES = {
    "finetune_examples": "fine-tuning examples",
    "model_size": "parameters",
    "pretrain_tokens": "pre-training tokens",
    "pet_params": "trainable parameters",
}
LOSS = "test loss (nats per target token)"
ALL_METHODS = "all methods"  # the name of the method where cells do not tell methods apart


def colours(methods: Sequence[str]) -> dict[str, str]:
    """Return a colour for each method: always the same for the usual three."""
    free = [c for c in PALETTE if c not in {USUAL.get(method) for method in methods}]
    others = [method for method in dict.fromkeys(methods) if method not in USUAL]
    chosen = {method: free[i % len(free)] for i, method in enumerate(others)}
    return {method: USUAL.get(method) or chosen[method] for method in dict.fromkeys(methods)}


def axis_name(column: str) -> str:
    """Return what a column is called on an axis."""
    return AXIS_NAMES.get(column, column.replace("_", " "))


def short(value: float) -> str:
    """Return a count with at most three digits and its thousands as k, M, B or T."""
    for power, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if abs(value) >= 0.9995 * 10**power:
            return f"{float(f'{value:.3g}') / 10**power:g}{suffix}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share of one in whole per cent."""
    return f"{100 * share:.0f} %"
