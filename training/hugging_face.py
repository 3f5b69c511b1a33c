"""What transformers is kept from: bars and advice that nobody asked for, and needless masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and the advice of transformers to themselves."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# The name under which transformers finds fused attention without a mask.
MASKLESS = "tunecast_maskless"


def without_mask(model: Any) -> Any:
    """Let a model's attention do without a mask where causality is all that it would say.

    With its own way of making masks transformers looks into a tensor in every pass, for which the
    host waits. Models with sliding windows keep it, and those whose attention is not fused.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}
    if model._supports_attention_backend and config._attn_implementation == "sdpa" and not windowed:
        AttentionInterface.register(MASKLESS, sdpa_attention_forward)
        model.set_attn_implementation(MASKLESS)
    return model
