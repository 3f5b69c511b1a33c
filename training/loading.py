"""Base models in memory, or as an outline of shapes alone; a rung is pre-trained at first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tunecast.models.errors import TunecastError
from tunecast.training.base_models import BaseModel, Rung
from tunecast.training.hugging_face import quiet
from tunecast.training.pretraining import rung_folder


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A base model in memory.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        On the CPU, in float32.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    size : int
        Parameters without token embeddings and without the vocabulary head.
    total : int
        All parameters.
    context : int
        Longest input in tokens.
    """

    model: Any
    tokenizer: Any
    size: int
    total: int
    context: int


def load_base(
    base: BaseModel, cache: Path, progress: Callable[[float], None] | None = None
) -> Loaded:
    """Load a base model, pre-training it first if it is a rung that the cache does not hold.

    Parameters
    ----------
    base : Hub or Rung
        What to load.
    cache : Path
        Folder of what has been trained.
    progress : callable, optional
        Called with the share of pre-training that is done.

    Raises
    ------
    TunecastError
        If transformers cannot load it, in one sentence.
    """
    if isinstance(base, Rung):
        return _load(str(rung_folder(base, cache, progress)), base.name)
    return _load(base.path, base.name)


@lru_cache(maxsize=2)
def _load(path: str, name: str) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(path, name, error) from error
    context = getattr(model.config, "max_position_embeddings", None) or 10**9
    return Loaded(model, tokenizer, body_size(model), model.num_parameters(), int(context))


@lru_cache
def outline(path: str, name: str) -> Any:
    """Return a model from its configuration alone, on the device ``meta``: shapes and no numbers.

    Raises
    ------
    TunecastError
        If transformers has no configuration there, in one sentence.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(path, name, error) from error


def _unloadable(path: str, name: str, error: Exception) -> TunecastError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return TunecastError(f"base model '{name}' cannot be loaded from '{path}': {reason}.")


def body_size(model: Any) -> int:
    """Return the parameters of a model without its token embeddings and vocabulary head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    left_out = {id(p) for end in ends if end is not None for p in end.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in left_out)
