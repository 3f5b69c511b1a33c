"""A base model with a method attached, by PEFT's own modules and in its file format.

`attach` prepares a base model. `Tuned.logits` then runs it without what fine-tuning does not need:
no attention mask (padding stands to the right, where causal attention never looks), which also lets
the fused kernels be used, and the vocabulary head at the target positions alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tunecast.models.errors import TunecastError
from tunecast.training.hugging_face import quiet, without_mask
from tunecast.training.loading import Loaded
from tunecast.training.methods import Method, Prompt


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
        adapter = getattr(model, "peft_config", {}).get("default")
        self.inner = model if adapter is None else model.get_base_model()
        # Of LoRA's update; other methods have none.
        self.scale = getattr(adapter, "lora_alpha", 1) / getattr(adapter, "r", 1)
        self._short = self._head_alone_suffices()

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, counts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return the logits of the next token at some positions.

        Parameters
        ----------
        ids : Tensor of int64, shape (batch, length)
            Token ids, padded on the right with any id.
        positions : Tensor of int64, shape (targets,)
            Indices into the flattened ``ids``.
        counts : sequence of int
            Positions of each run, for a stack of them; here there is one.

        Returns
        -------
        Tensor, shape (targets, vocabulary)
            In the precision of the head.
        """
        del counts
        if not self.virtual:
            return self.at(positions, input_ids=ids)
        row, column = positions // ids.shape[1], positions % ids.shape[1]
        positions = row * (self.virtual + ids.shape[1]) + self.virtual + column
        return self.at(positions, inputs_embeds=self.prompted(ids))

    def prompted(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of a prompt and of the tokens behind it.

        Shape (batch, virtual + length, width), of token ids of shape (batch, length).
        """
        embedded = self.inner.get_input_embeddings()(ids)
        prompt = self.model.get_prompt(batch_size=len(ids))
        return torch.cat([prompt.to(embedded.dtype), embedded], dim=1)

    def at(self, positions: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits at positions in the flattened inputs of the model itself."""
        return self._at(positions, self._short, **inputs)

    def _at(self, positions: torch.Tensor, short: bool, **inputs: torch.Tensor) -> torch.Tensor:
        if not short:
            return self.inner(**inputs, use_cache=False).logits.flatten(0, 1)[positions]
        hidden = self.inner.base_model(**inputs, use_cache=False).last_hidden_state
        return self.inner.get_output_embeddings()(hidden.flatten(0, 1)[positions])

    @torch.no_grad()
    def _head_alone_suffices(self) -> bool:
        """Whether the model's logits are its head applied to its last state, nothing more.

        Some architectures scale or cap them; those go the long way.
        """
        if self.inner.get_output_embeddings() is None:
            return False
        ids = torch.arange(6, device=next(self.inner.parameters()).device).view(1, -1)
        was_training = self.model.training
        self.model.eval()
        short, long = (self._at(ids[0], short, input_ids=ids) for short in (True, False))
        self.model.train(was_training)
        return torch.allclose(short.float(), long.float(), rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over the values of the trained parameters."""
        for name, parameter in self.trainable.items():
            parameter.copy_(values[name])

    def save(self, folder: Path) -> None:
        """Save the trained parameters: an adapter in PEFT's format, or the whole model."""
        with quiet():
            self.model.save_pretrained(folder)


@lru_cache(maxsize=2)
def frozen(base: Loaded, device: str) -> Any:
    """Return a base model that is not trained, for all runs to share: on a GPU in bfloat16."""
    model = copy.deepcopy(base.model).to(device).requires_grad_(False)
    if device == "cuda":
        for parameter in model.parameters():  # and no buffer: angles of positions need float32
            parameter.data = parameter.data.to(torch.bfloat16)
    return without_mask(model)


def attach(base: Loaded, method: Method, *, seed: int = 0, device: str = "cpu") -> Tuned:
    """Return a base model with a method attached, ready to train.

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

    Raises
    ------
    TunecastError
        If the prompt leaves no room in the model's context.
    """
    if method.config() is None:
        return fitted(copy.deepcopy(base.model).to(device), base.context, method, seed=seed)
    shared = frozen(base, device)
    # A structure of its own around the same tensors.
    model = copy.deepcopy(shared, {id(p): p for p in shared.parameters()})
    return fitted(model, base.context, method, seed=seed)


def fitted(model: Any, context: int, method: Method, *, seed: int = 0) -> Tuned:
    """Put a method into a model, which it uses up; see `attach`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        It becomes part of what is returned.
    context : int
        Longest input in tokens.
    method, seed
        As in `attach`.

    Raises
    ------
    TunecastError
        If the prompt leaves no room in the model's context.
    """
    from peft import get_peft_model

    virtual = method.length if isinstance(method, Prompt) else 0
    if virtual >= context:
        raise TunecastError(
            f"a prompt of {virtual} virtual tokens leaves no room in a context of {context}."
        )
    model, config = without_mask(model), method.config()
    if config is None:
        return Tuned(model, virtual)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # PEFT asks transformers for a name that is to go.
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, config)
    return Tuned(model, virtual)
