"""Question: what do stacks bring on a GPU, beside PEFT run by run, our own loop and TRL's trainer?

    python benchmarks/training_gpu.py --out benchmarks/results/training_gpu.json
    python benchmarks/training_gpu.py --device cpu --small --out toy.json     (tries the script)

The same model, batch size and lengths for every way, in turn, and ratios of runs an hour. LoRA and
full tuning: stacks of several sizes beside our loop run by run, a plain loop with PEFT's model,
attention mask and all logits, and TRL's SFTTrainer on the same examples in tokens. Full tuning
also as concurrent processes, the other way to share a device. Then the share of the peak (MFU)
that full tuning of the largest model of the `h200` ladder reaches, run by run, stacked and through
torch.compile. Weights and text are random: speed does not depend on what they are.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import peft
import torch
import transformers
from resume import save

from tunecast.training.batches import order_from, pool_of
from tunecast.training.budget import Budget
from tunecast.training.devices import autocast, best_device, peak_flops, threads
from tunecast.training.examples import Encoded, Example
from tunecast.training.loading import Loaded, body_size
from tunecast.training.methods import FMT, LoRA, Method
from tunecast.training.recipes import h200
from tunecast.training.side_by_side import measured_step
from tunecast.training.stacked import NotStackable

STEPS = 16
RATE = 1e-4


def base_of(layers: int, width: int, heads: int, vocabulary: int) -> Loaded:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    return Loaded(model, None, body_size(model), model.num_parameters(), 256)


def task_of(vocabulary: int, count: int) -> Encoded:
    """Return examples as long as those of a translation of a sentence."""
    rng = np.random.default_rng(0)

    def some(number: int) -> tuple[Example, ...]:
        sizes = rng.integers(8, 48, size=(number, 2))
        return tuple(
            Example(rng.integers(4, vocabulary, size=a + b).astype(np.int32), int(b))
            for a, b in sizes
        )

    return Encoded(some(count), some(64), some(64), ())


@contextlib.contextmanager
def memory(found: dict[str, float]) -> Iterator[None]:
    """Note the largest memory in GB: of the device, or else of this process so far."""
    if best_device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    peak = (
        torch.cuda.max_memory_allocated()
        if best_device() == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    found["memory_gb"] = peak / 1e9


def wait() -> float:
    """Return the time once the device is done."""
    if best_device() == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def side_by_side(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Pad as transformers wants it: a mask, and labels of -100 where nothing counts."""
    length = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, e in enumerate(examples):
        n = len(e.ids)
        ids[row, :n] = torch.from_numpy(e.ids.astype(np.int64))
        labels[row, n - e.targets : n] = ids[row, n - e.targets : n]
        mask[row, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def usual(base: Loaded, method: Method) -> Any:
    """Return the model as PEFT's users have it, a frozen base in bfloat16 on a GPU."""
    model = copy.deepcopy(base.model).to(best_device()).train()
    config = method.config()
    if config is None:
        return model
    return peft.get_peft_model(model.bfloat16() if best_device() == "cuda" else model, config)


def with_peft(base: Loaded, task: Encoded, method: Method, budget: Budget) -> float:
    """Return the seconds of a step of the usual loop: PEFT, AdamW, bfloat16 on a GPU."""
    device = best_device()
    model = usual(base, method)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    lengths = pool_of(task.train).lengths
    began = wait()
    order = islice(order_from(0, lengths, budget, 0), STEPS + 2)
    for step, members in enumerate(order):
        if step == 2:
            began = wait()
        batch = side_by_side([task.train[k] for k in members])
        with autocast(device):
            loss = model(**{name: part.to(device) for name, part in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()
    return (wait() - began) / STEPS


class Clock(transformers.TrainerCallback):
    """The time after the second step and after the last."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (2, STEPS + 2):
            self.times.append(wait())


def with_trl(base: Loaded, task: Encoded, method: Method, budget: Budget) -> float:
    """Return the seconds of a step of TRL's SFTTrainer, examples of like length together."""
    import datasets
    import trl

    on_gpu = best_device() == "cuda"
    rows = [
        {
            "input_ids": (ids := e.ids.tolist()),
            "labels": [-100] * (len(ids) - e.targets) + ids[len(ids) - e.targets :],
        }
        for e in task.train
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            max_steps=STEPS + 2,
            per_device_train_batch_size=budget.batch,
            learning_rate=RATE,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            gradient_checkpointing=False,
            packing=False,
            max_length=None,
            train_sampling_strategy="group_by_length",
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=on_gpu,
        )
        trainer = trl.SFTTrainer(
            usual(base, method),
            arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer_of(base),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    first, last = clock.times
    return (last - first) / STEPS


def tokenizer_of(base: Loaded) -> Any:
    """Return a tokenizer that a trainer asks for and nobody uses: the examples are in tokens."""
    from tokenizers import Tokenizer, models

    words = {f"w{k}": k for k in range(base.model.config.vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w0", eos_token="w1"
    )


def in_processes(shape: tuple[int, int, int], vocabulary: int, count: int, batch: int) -> float:
    """Return the seconds for as many steps of full tuning as there are processes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(count) as pool:
        asked = [(shape, vocabulary, batch, os.environ.get("CUDA_VISIBLE_DEVICES"))] * count
        each = pool.starmap(one_process, asked, chunksize=1)
    return count / sum(1 / seconds for seconds in each)


def one_process(
    shape: tuple[int, int, int], vocabulary: int, batch: int, devices: str | None
) -> float:
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    threads(1)
    base, task = base_of(*shape, vocabulary), task_of(vocabulary, 40 * batch)
    pool = pool_of(task.train)
    times = [measured_step(base, task, pool, FMT(), Budget(batch=batch), 1)[0] for _ in range(3)]
    return float(np.median(times))


def measure(asked: argparse.Namespace, shapes: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Return a row for each model, method and way: seconds of a step, and ratios to others."""
    rows = []
    for shape in shapes:
        base, task = base_of(*shape, asked.vocabulary), task_of(asked.vocabulary, 40 * asked.batch)
        pool, budget = pool_of(task.train), Budget(batch=asked.batch)
        for method in (LoRA(), FMT()):
            found: dict[str, dict[str, float]] = {}
            for places in asked.places:
                name = "tunecast" if places == 1 else f"stack of {places}"
                found[name] = {}
                try:
                    with memory(found[name]):
                        seconds, flops = measured_step(base, task, pool, method, budget, places)
                except (NotStackable, torch.OutOfMemoryError) as error:
                    print(f"{name}: {error}")
                    del found[name]
                    break
                found[name] |= {"seconds": seconds / places, "flops": flops / places}
            for name, way in (("peft", with_peft), ("trl", with_trl)):
                found[name] = {}
                with memory(found[name]):
                    found[name]["seconds"] = way(base, task, method, budget)
            if isinstance(method, FMT):
                for count in asked.processes:
                    seconds = in_processes(shape, asked.vocabulary, count, asked.batch)
                    found[f"{count} processes"] = {"seconds": seconds / count}
                if shape == shapes[-1] and best_device() == "cuda":
                    seconds, flops = measured_step(
                        base, task, pool, method, budget, 1, compiled=True
                    )
                    found["compiled"] = {"seconds": seconds, "flops": flops}
            rows.append(reported(base, method, found))
    return rows


def reported(base: Loaded, method: Method, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print the ratios of one model and method, and return them with what they are of."""
    peak = peak_flops(best_device())
    print(f"{base.size / 1e6:.3g}M {method.label}:")
    for name, facts in found.items():
        hour = 3600 / facts["seconds"]
        ratios = {f"times_{other}": found[other]["seconds"] / facts["seconds"]
                  for other in ("tunecast", "peft", "trl")}  # fmt: skip
        mfu = facts["flops"] / facts["seconds"] / peak if peak and "flops" in facts else None
        facts |= {"run_steps_per_hour": hour, **ratios}
        told = ", ".join(f"{ratio:.2f}x {other[6:]}" for other, ratio in ratios.items())
        used = "" if mfu is None else f", MFU {mfu:.1%}"
        if mfu is not None:
            facts["mfu"] = mfu
        print(f"  {name}: {told}{used}, {facts.get('memory_gb', 0):.2f} GB", flush=True)
    return {"parameters": base.size, "method": method.label, "ways": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a toy that a CPU can do")
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before anything asks for a device
    if best_device() != asked.device:
        parser.exit(2, "there is no GPU here; --device cpu --small tries the script.\n")
    threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    rungs = {cell.base for cell in h200().cells}
    shapes = sorted((b.layers, b.width, b.heads) for b in rungs)  # type: ignore[union-attr]
    asked.vocabulary, asked.places, asked.processes = 8192, [1, 4, 16, 32], [2, 4, 8]
    if asked.small:
        shapes, asked.vocabulary, asked.places, asked.processes = [(2, 32, 2)], 200, [1, 4], [2]
    results = measure(asked, shapes)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "no GPU: a toy on a CPU"
    if peak_flops(asked.device) is None:
        print("MFU is left out: no data sheet here says the peak of this device.")
    print(name)
    save(
        asked.out,
        {
            "command": " ".join(["python", *sys.argv]),
            "device": name,
            "batch": asked.batch,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
