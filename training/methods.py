"""Methods: full fine-tuning, LoRA and prompt tuning, with PEFT's own modules and file format.

`attach` prepares a copy of a base model. `Tuned.logits` then runs it without what fine-tuning does
not need: no attention mask (padding stands to the right, where causal attention never looks) and
the vocabulary head at the target positions alone.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunecast.training.ladder import Loaded, quiet
from tunecast.training.tasks import TrainingError


@dataclass(frozen=True, slots=True)
class FMT:
    """Full-model tuning: every parameter is trained."""

    label = "fmt"

    @property
    def setting(self) -> int:
        """Nothing to set."""
        return 0

    def config(self) -> None:
        """There is no adapter."""
        return None


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adapters of every matrix of attention and feed-forward (arXiv:2106.09685).

    Parameters
    ----------
    rank : int
        Rank r of the update B A, scaled by ``alpha / rank``.
    alpha : int
        Numerator of the scale; fixed, so that ranks compare.
    """

    rank: int = 4
    alpha: int = 16
    label = "lora"

    def __post_init__(self) -> None:
        """Reject a rank below 1."""
        if self.rank < 1:
            raise TrainingError(f"the rank of LoRA must be at least 1, not {self.rank}.")

    @property
    def setting(self) -> int:
        """The rank."""
        return self.rank

    def config(self) -> Any:
        """Return PEFT's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",  # PEFT leaves the vocabulary head out of these
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt tuning: virtual tokens before the input (arXiv:2104.08691).

    Parameters
    ----------
    length : int
        Virtual tokens; they start as embeddings of tokens drawn from the vocabulary.
    """

    length: int = 16
    label = "prompt"

    def __post_init__(self) -> None:
        """Reject a length below 1."""
        if self.length < 1:
            raise TrainingError(f"the length of a prompt must be at least 1, not {self.length}.")

    @property
    def setting(self) -> int:
        """The length."""
        return self.length

    def config(self) -> Any:
        """Return PEFT's configuration."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.length,
            prompt_tuning_init="SAMPLE_VOCAB",
        )


type Method = FMT | LoRA | Prompt


class Tuned:
    """A base model with a method attached.

    Parameters
    ----------
    model : torch.nn.Module
        The model itself for full tuning, else a `peft.PeftModel` around it.
    virtual : int
        Virtual tokens before every input.
    """

    def __init__(self, model: Any, virtual: int) -> None:
        self.model = model
        self.virtual = virtual
        self.inner = model.get_base_model() if hasattr(model, "peft_config") else model
        self._short = self._head_alone_suffices()

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def logits(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token at some positions.

        Parameters
        ----------
        ids : Tensor of int64, shape (batch, length)
            Token ids, padded on the right with any id.
        positions : Tensor of int64, shape (targets,)
            Indices into the flattened ``ids``.

        Returns
        -------
        Tensor, shape (targets, vocabulary)
            In the precision of the head.
        """
        return self._logits(ids, positions, short=self._short)

    def _logits(self, ids: torch.Tensor, positions: torch.Tensor, *, short: bool) -> torch.Tensor:
        if self.virtual:
            embedded = self.inner.get_input_embeddings()(ids)
            prompt = self.model.get_prompt(batch_size=len(ids)).to(embedded.dtype)
            inputs = {"inputs_embeds": torch.cat([prompt, embedded], dim=1)}
        else:
            inputs = {"input_ids": ids}
        if not short:
            full = self.inner(**inputs, use_cache=False).logits
            return full[:, self.virtual :].flatten(0, 1)[positions]
        hidden = self.inner.base_model(**inputs, use_cache=False).last_hidden_state
        return self.inner.get_output_embeddings()(
            hidden[:, self.virtual :].flatten(0, 1)[positions]
        )

    @torch.no_grad()
    def _head_alone_suffices(self) -> bool:
        """Whether the model's logits are its head applied to its last state, nothing more.

        Some architectures scale or cap them; those go the long way.
        """
        if self.inner.get_output_embeddings() is None:
            return False
        device = next(self.inner.parameters()).device
        ids = torch.arange(6, device=device).view(1, -1)
        was_training = self.model.training
        self.model.eval()
        short, long = (self._logits(ids, ids[0], short=short) for short in (True, False))
        self.model.train(was_training)
        return torch.allclose(short.float(), long.float(), rtol=1e-3, atol=1e-3)

    def save(self, folder: Path) -> None:
        """Save the trained parameters: an adapter in PEFT's format, or the whole model."""
        with quiet():
            self.model.save_pretrained(folder)


def attach(
    base: Loaded, method: Method, *, seed: int = 0, device: str = "cpu", spare: bool = False
) -> Tuned:
    """Return a copy of a base model with a method attached, ready to train.

    Parameters
    ----------
    base : Loaded
        It stays as it is.
    method : FMT, LoRA or Prompt
        What to train.
    seed : int
        Of the adapter's initial values.
    device : str
        Where to put it. On a GPU a frozen base is kept in bfloat16.
    spare : bool
        Whether to use up the base instead of copying it.

    Raises
    ------
    TrainingError
        If the prompt leaves no room in the model's context.
    """
    from peft import get_peft_model

    virtual = method.length if isinstance(method, Prompt) else 0
    if virtual >= base.context:
        raise TrainingError(
            f"a prompt of {virtual} virtual tokens leaves no room in a context of {base.context}."
        )
    model = (base.model if spare else copy.deepcopy(base.model)).to(device)
    config = method.config()
    if config is not None:
        if device == "cuda":
            model = model.to(torch.bfloat16)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # PEFT asks transformers for a name that is to go.
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, config)
    return Tuned(model, virtual)
