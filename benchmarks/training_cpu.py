"""Question: how many tokens does a CPU second train, side by side with the Hugging Face Trainer?

    python benchmarks/training_cpu.py --out benchmarks/results/training_cpu.json

The same model, examples, batch size and number of steps, one thread, in turn: the Trainer in its
default order, the Trainer with examples of like length together, a plain loop over such batches
that computes all logits, and `tunecast.training.loop.train`. Tokens count without padding. CPU
seconds of the process are compared, not wall time, and ratios, not speeds: so other work on the
machine hardly matters. The text is Python's own docstrings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import transformers

from tunecast.models.files import default_cache, write_atomically
from tunecast.training.base_models import Pretraining as Plan
from tunecast.training.batches import batches
from tunecast.training.budget import Budget, cosine
from tunecast.training.devices import threads
from tunecast.training.examples import Example, encode
from tunecast.training.hugging_face import quiet
from tunecast.training.loading import Loaded, body_size
from tunecast.training.loop import train
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.pretraining import tokenizer_folder
from tunecast.training.tasks import TaskSource, load_task
from tunecast.training.tuned import attach

SHAPES = {"0.24m": (4, 64), "1.3m": (7, 112)}
RATE = 1e-3


def base_of(layers: int, width: int, plan: Plan) -> Loaded:
    """Return a model of random weights: speed does not depend on what they are."""
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder(plan, default_cache())
        )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    return Loaded(model, tokenizer, body_size(model), model.num_parameters(), 512)


def collate(items: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad as transformers wants it: a mask, and labels of -100 where nothing counts."""
    length = max(len(item["input_ids"]) for item in items)
    ids = torch.zeros(len(items), length, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, item in enumerate(items):
        n = len(item["input_ids"])
        ids[row, :n] = torch.tensor(item["input_ids"])
        labels[row, :n] = torch.tensor(item["labels"])
        mask[row, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def as_rows(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    rows = []
    for example in examples:
        ids = example.ids.tolist()
        masked = len(ids) - example.targets
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def with_trainer(model: Any, rows: list[dict[str, list[int]]], size: int, order: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=size,
            learning_rate=RATE,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            train_sampling_strategy=order,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def with_loop(model: Any, rows: list[dict[str, list[int]]], size: int) -> None:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    order = batches(np.array([len(row["input_ids"]) for row in rows]), size, 0, 0)
    for step, members in enumerate(order):
        loss = model(**collate([rows[k] for k in members])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = RATE * cosine(step, len(order), warm_up=0.05)
        optimizer.step()


def measure(base: Loaded, method: Method, examples: Sequence[Example], size: int) -> dict[str, Any]:
    """Return tokens a CPU second of each way, once."""
    rows = as_rows(examples)
    tokens = sum(len(example.ids) for example in examples)
    budget = Budget(epochs=1, examples=1, batch=size, evaluations=1)
    ways: dict[str, Callable[[], object]] = {
        "trainer": lambda: with_trainer(attach(base, method).model, rows, size, "random"),
        "trainer_grouped": lambda: with_trainer(
            attach(base, method).model, rows, size, "group_by_length"
        ),
        "plain_loop": lambda: with_loop(attach(base, method).model, rows, size),
        "tunecast": lambda: train(
            attach(base, method), examples, examples[:1], budget, rate=RATE, seed=0
        ),
    }
    found = {}
    for name, way in ways.items():
        started = time.process_time()
        way()
        found[name] = tokens / (time.process_time() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=960)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    asked = parser.parse_args()
    threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    source = TaskSource(name="docstrings", max_source=256, max_target=64)
    plan = Plan(family="benchmark", corpus=source, tokens=1)
    results = []
    for name in asked.models:
        base = base_of(*SHAPES[name], plan)
        task = encode(load_task(source), source, base.tokenizer, Budget())
        examples = task.train[: asked.examples]
        for method in (FMT(), LoRA(), Prompt()):
            measure(base, method, examples[: 2 * asked.batch], asked.batch)  # what is done once
            runs = [measure(base, method, examples, asked.batch) for _ in range(asked.repeats)]
            speed = {way: statistics.median(r[way] for r in runs) for way in runs[0]}
            against = {
                f"times_{way}": statistics.median(r["tunecast"] / r[way] for r in runs)
                for way in runs[0]
                if way != "tunecast"
            }
            row = {"model": name, "method": method.label, "tokens_per_cpu_second": speed, **against}
            results.append(row)
            told = ", ".join(f"{key[6:]} {value:.2f}x" for key, value in against.items())
            print(f"{name} {method.label}: {told}", flush=True)
    shape = {
        "examples": len(examples),
        "batch": asked.batch,
        "mean_tokens": float(np.mean([len(e.ids) for e in examples])),
        "mean_targets": float(np.mean([e.targets for e in examples])),
        "vocabulary": plan.vocabulary,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    text = json.dumps({"work": shape, "results": results}, indent=1)
    write_atomically(asked.out, lambda path: path.write_text(text))
    print(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
