"""What all tests share. Warnings are errors (pyproject.toml), and nothing depends on the clock."""

import itertools
import json
import os
import resource

# Before anything imports them: figures without a display, one thread for each process.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the training tests need is made by themselves; none of them asks a network.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings

from tunecast.models.fits import Diagnostics, Fit, Member
from tunecast.models.hierarchy import simulate_prior
from tunecast.models.inference import question_of
from tunecast.models.layout import lay_out
from tunecast.models.priors import WEAK, PriorTable
from tunecast.models.runs import read_runs

# Runs of a smaller ladder than the embedded one: fits take seconds.
SMALL = str(Path(__file__).parent / "data" / "small_ladder.csv")

# What a fit of it says of itself.
INFO = {
    "law": "rectified",
    "factors": ["model_size"],
    "data": "finetune_examples",
    "cell": ["task", "method"],
    "curve": "base_model",
    "seed": 1,
    "simulated": False,
}

# The same examples every time: a red build must be one that anybody can repeat.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@contextmanager
def disk_full_after(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to make a file longer than ``num_bytes``, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def _ladder() -> pd.DataFrame:
    return read_runs(SMALL, columns=["model_size", "finetune_examples"])


@pytest.fixture
def ladder(_ladder: pd.DataFrame) -> pd.DataFrame:
    """49 measured runs, each test its own copy."""
    return _ladder.copy()


@pytest.fixture(scope="session")
def _zhang() -> pd.DataFrame:
    return read_runs("zhang2024-simulated", columns=["model_size", "finetune_examples"])


@pytest.fixture
def zhang(_zhang: pd.DataFrame) -> pd.DataFrame:
    """The embedded simulated table: several tasks, methods and families, a copy for each test."""
    return _zhang.copy()


@pytest.fixture(scope="session")
def believed() -> Callable[..., Fit]:
    """Make a fit whose draws come from the prior: every answer, without sampling a posterior."""

    def make(
        runs: pd.DataFrame,
        *,
        law: str = "rectified",
        size: int = 200,
        seed: int = 1,
        priors: PriorTable = WEAK,
        **ask: Any,
    ) -> Fit:
        layout = lay_out(runs, question_of(runs, law=law, **ask))
        draws, _ = simulate_prior(layout, priors, size, seed)
        good = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, size)
        return Fit((Member(layout, priors, draws, 1.0),), runs, {"seed": seed}, good)

    return make


# --------------------------------------------------------------------------- for the training tests


@pytest.fixture(scope="session")
def words_task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task that a tiny model learns within seconds: sources and targets of unequal lengths."""
    from tunecast.training.tasks import TaskSource

    path = tmp_path_factory.mktemp("task") / "words.jsonl"
    names = ("red", "green", "blue", "black", "white", "grey", "pink")
    with path.open("w") as file:
        for k in range(400):
            picked = [names[(k // 7**j) % 7] for j in range(1 + k % 4)]
            row = {"source": f"{k} {' '.join(picked)}", "target": " ".join(reversed(picked))}
            file.write(json.dumps(row) + "\n")
    return TaskSource(name="words", path=str(path), max_source=32, max_target=32)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory, words_task: Any) -> Any:
    """A two-layer Llama with random weights and a tokenizer of its own, in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunecast.training.base_models import Hub
    from tunecast.training.pretraining import train_tokenizer
    from tunecast.training.tasks import load_task

    folder = tmp_path_factory.mktemp("base")
    texts = [text for pair in load_task(words_task, folder).train for text in pair]
    tokenizer = train_tokenizer(texts, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    import torch

    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Hub(name="small", path=str(folder), family="small", pretrain_tokens=1e6)


@pytest.fixture(scope="session")
def base(small_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small model, loaded: nobody changes it, each run has a copy."""
    from tunecast.training.loading import load_base

    return load_base(small_base, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def task(words_task: Any, base: Any) -> Any:
    """The words in the tokens of the small model."""
    from tunecast.training.budget import Budget
    from tunecast.training.examples import encode
    from tunecast.training.tasks import load_task

    budget = Budget(dev_examples=8, test_examples=12)
    return encode(load_task(words_task), words_task, base.tokenizer, budget)


@pytest.fixture
def recipe(small_base: Any, words_task: Any) -> Any:
    """Twelve runs of the words on the small model, by each method."""
    from tunecast.training.budget import Budget
    from tunecast.training.methods import FMT, LoRA, Prompt
    from tunecast.training.recipes import Recipe, grid

    return Recipe(
        name="test",
        cells=grid([words_task], [small_base], (FMT(), LoRA(rank=2), Prompt(length=3)), (8, 24)),
        seeds=(0, 1),
        rates={"fmt": (1e-3, 1e-2), "lora": (1e-3, 1e-2), "prompt": (1e-2, 1e-1)},
        budget=Budget(
            epochs=1, examples=1, batch=8, evaluations=2, dev_examples=4, test_examples=8
        ),
    )


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many runs train side by side in this process, one unless a test says otherwise."""
    from tunecast.training.sweep import worker

    def say(count: int) -> None:
        monkeypatch.setattr(worker, "places_for", lambda *_: count)

    say(1)
    return say


def interrupted_at(call: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, with somebody pressing Ctrl-C at a call of it."""
    calls = itertools.count(1)

    def interrupted(*given: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(*given)

    return interrupted
