"""A row from somebody else's training: a callback of the Hugging Face Trainer, and so of TRL."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from tunecast.models.errors import TunecastError
from tunecast.models.runs import Run, append_run
from tunecast.training.evaluate import Diverged, ratio
from tunecast.training.loading import body_size

# PEFT's names of the methods that have one here; others keep PEFT's, in lower case.
METHODS: Mapping[str, str] = {"LORA": "lora", "PROMPT_TUNING": "prompt"}


class RunTableCallback(TrainerCallback):
    """Append a row to a run table when training ends.

    The loss is measured anew on the test data, over target tokens (those whose label is not
    -100), with the model as training leaves it: with ``load_best_model_at_end`` the best one.

    Parameters
    ----------
    table : str or Path
        The run table: a file, or the URL of a database.
    task : str
        The ``task`` column.
    test : iterable of dict of Tensor
        Test batches with ``labels``, such as ``trainer.get_eval_dataloader(test_data)``.
    run_id, family, base_model : str, optional
        Those columns; by default a new name, none, and the name in the model's configuration.
    pretrain_tokens : float, optional
        That column.
    finetune_examples : int, optional
        That column; by default the length of the training data, which is not the number of
        examples where several were packed into one.
    extra : mapping, optional
        Further columns.
    """

    def __init__(
        self,
        table: str | Path,
        *,
        task: str,
        test: Any,
        run_id: str | None = None,
        family: str | None = None,
        base_model: str | None = None,
        pretrain_tokens: float | None = None,
        finetune_examples: int | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.table = table
        self.task = task
        self.test = test
        self.run_id = run_id
        self.family = family
        self.base_model = base_model
        self.pretrain_tokens = pretrain_tokens
        self.finetune_examples = finetune_examples
        self.extra = dict(extra or {})
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the test loss and append the row.

        Raises
        ------
        TunecastError
            If the number of training examples is not known.
        TunecastError
            If the table holds this run already.
        """
        if not state.is_world_process_zero:
            return
        seconds = (time.perf_counter() - self._started) * max(1, args.n_gpu)
        model = kwargs["model"]
        adapted = hasattr(model, "peft_config")
        inner = model.get_base_model() if adapted else model
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        data = getattr(kwargs.get("train_dataloader"), "dataset", None)
        examples = self.finetune_examples
        if examples is None:
            if not hasattr(data, "__len__"):
                raise TunecastError("give finetune_examples: the training data have no length.")
            examples = len(data)  # type: ignore[arg-type]
        loss, error, status, reason = None, None, "done", ""
        try:
            loss, error = loss_on(model, self.test)
        except Diverged as diverged:
            status, reason = "diverged", str(diverged)
        adapter_size = sum(p.numel() for name, p in inner.named_parameters() if "lora_" in name)
        row = Run(
            run_id=self.run_id or f"{self.task}/{uuid.uuid4().hex[:12]}",
            task=self.task,
            method=_method(model) if adapted else "fmt",
            base_model=self.base_model or getattr(inner.config, "name_or_path", "") or None,
            family=self.family,
            model_size=float(body_size(inner) - adapter_size),
            pretrain_tokens=self.pretrain_tokens,
            pet_params=float(trainable) if adapted else 0.0,
            finetune_examples=float(examples),
            loss=loss,
            loss_se=error,
            seed=args.seed,
            status=status,
            train_flops=float(state.total_flos) or None,
            gpu_seconds=round(seconds, 3),
        )
        known = {
            "reason": reason,
            "learning_rate": args.learning_rate,
            "steps": state.global_step,
            "trainable_params": trainable,
        }
        append_run(self.table, row, extra={**known, **self.extra})


def _method(model: Any) -> str:
    (kind, *_) = [str(config.peft_type.value) for config in model.peft_config.values()]
    return METHODS.get(kind, kind.lower())


@torch.no_grad()
def loss_on(model: Any, batches: Any) -> tuple[float, float]:
    """Return the mean loss over target tokens and its standard error over examples.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model, with an adapter or without.
    batches : iterable of dict of Tensor
        Batches with ``labels`` of shape (batch, length), -100 where nothing is to be predicted.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums, counts = [], []
    for batch in batches:
        given = {name: value.to(device) for name, value in batch.items()}
        labels = given.pop("labels")
        logits = model(**given).logits.float()
        # Prompt tuning answers for its virtual tokens too; they stand first.
        logits = logits[:, logits.shape[1] - labels.shape[1] :]
        nats = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        )
        sums.append(nats.double().sum(1).cpu().numpy())
        counts.append((labels[:, 1:] != -100).sum(1).cpu().numpy())
    model.train(was_training)
    if not sums:
        raise TunecastError("the test data of the callback are empty.")
    return ratio(np.concatenate(sums), np.concatenate(counts))
