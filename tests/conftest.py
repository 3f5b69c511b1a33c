"""What all tests share. Warnings are errors (pyproject.toml), and nothing depends on the clock."""

import importlib
import itertools
import json
import os
import resource
import shutil
import sys

# Before anything imports them: figures without a display, one thread for each process.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the training tests need is made by themselves; none of them asks a network.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
from commands import Call, Done
from hypothesis import settings

import tunecast.models
from tunecast.analysis.cli import main
from tunecast.models.fits.fit import Fit, fit
from tunecast.models.hierarchy.numpy_backends import geometry_of, simulate_prior
from tunecast.models.hierarchy.priors import WEAK, Priors
from tunecast.models.hierarchy.table import index_runs, spec_of
from tunecast.models.inference.diagnostics import Diagnostics
from tunecast.models.inference.posterior import Posterior
from tunecast.models.runs import read_runs, where

# Runs of a smaller ladder than the embedded one: fits take seconds.
SMALL = str(Path(__file__).parent / "data" / "small_ladder.csv")

# A target of it.
TARGET = "task,method,model_size,finetune_examples\ndebian-en-de,fmt,1240480,6000\n"

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

# Names that break a page or turn its text, if they are let.
HOSTILE = {
    "task": "</script><script>alert(1)</script> \"quoted\" 'single' & <b>bold</b>",
    "fmt": "=cmd|' /C calc'!A0 \U0001f9ea",
    "lora": "\u05e2\u05d1\u05e8\u05d9\u05ea \u202eright to left",
    "prompt": "very long " * 30,
}

# The same examples every time: a red build must be one that anybody can repeat.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


# --------------------------------------------------------------------------- what may be missing


def skip_without(program: str) -> NoReturn:
    """Skip for want of a program; where TUNECAST_REQUIRE_ALL=1 says that all are there, fail."""
    if os.environ.get("TUNECAST_REQUIRE_ALL") == "1":
        pytest.fail(f"TUNECAST_REQUIRE_ALL=1, and {program} is missing", pytrace=False)
    pytest.skip(f"needs {program}", allow_module_level=True)


def importorskip(name: str) -> Any:
    """Import a module, or do as `skip_without` does where its package is not installed."""
    try:
        return pytest.importorskip(name)
    except pytest.skip.Exception:
        skip_without(f"the package {name}")


# --------------------------------------------------------------------------- for all tests


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
        priors: Priors = WEAK,
        **ask: Any,
    ) -> Fit:
        table = index_runs(runs, spec_of(runs, law=law, **ask))
        found = simulate_prior(table, priors, size, seed, geometry_of(table, priors))
        draws = {name: values[None] for name, values in found.draws.items()}
        good = Diagnostics(1.0, 1e3, 1e3, 0, 1.0, size)
        return Fit((Posterior(table, priors, draws),), runs, {"seed": seed}, good)

    return make


@pytest.fixture(scope="session")
def sampled() -> Fit:
    """A fit of the small ladder, too short to converge: sampled once, and nobody changes it."""
    return fit(
        SMALL, draws=300, tune=400, chains=2, seed=3, retry=False, progress=False,
        allow_unconverged=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def sampled_file(sampled: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that fit."""
    path = tmp_path_factory.mktemp("sampled") / "fit.nc"
    sampled.save(path)
    return path


# --------------------------------------------------------------------------- for the command line


@pytest.fixture
def tunecast_(capfd: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs one command in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def unconverged(believed: Callable[..., Fit]) -> Fit:
    """A fit to the ladder without its largest model, with draws of the prior: not converged."""
    small = where(read_runs(SMALL), "base_model != 'ladder-1.2m'").reset_index(drop=True)
    made = believed(small)
    return replace(made, info=INFO, diagnostics=Diagnostics(1.2, 9.0, 9.0, 0, 1.0, 200))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, unconverged: Fit) -> Path:
    """The file of that fit."""
    path = tmp_path_factory.mktemp("fit") / "ladder.nc"
    unconverged.save(path)
    return path


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch, unconverged: Fit) -> list[dict[str, Any]]:
    """Put a finished fit in the place of sampling; the list holds how it was asked."""
    asked: list[dict[str, Any]] = []

    def fake(runs: pd.DataFrame, **options: Any) -> Fit:
        asked.append({"runs": runs, **options})
        if not options["allow_unconverged"]:
            raise tunecast.models.UnconvergedError(unconverged)
        return unconverged

    monkeypatch.setattr(tunecast.models, "fit", fake)
    return asked


# --------------------------------------------------------------------------- for reports


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        skip_without("chromium")
    api = importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def small_fit(believed: Callable[..., Fit], _ladder: pd.DataFrame) -> Fit:
    """A fit to the ladder with draws of the prior."""
    return believed(_ladder.copy(), size=600)


@pytest.fixture(scope="session")
def drawn_fit(believed: Callable[..., Fit], _ladder: pd.DataFrame) -> Fit:
    """Draws of the prior narrowed to one of them, with runs drawn from it: a fit that is true."""
    fit = believed(_ladder.copy(), size=50)
    (found,) = fit.posteriors
    draws = {k: np.repeat(v[:, :1], 400, axis=1) for k, v in found.draws.items()}
    one = replace(found, draws=draws)
    rng = np.random.default_rng(4)
    t = rng.standard_t(one.values["noise_df"][0], len(fit.runs))
    loss = np.exp(one.values["expected_log_loss"][0] + one.values["scale"][0] * t)
    return with_losses(replace(fit, posteriors=(one,)), loss)


def with_losses(fit: Fit, loss: np.ndarray) -> Fit:
    """Return the fit with other losses, its draws as they are."""
    (found,) = fit.posteriors
    changed = replace(found, table=replace(found.table, log_loss=np.log(loss)))
    # The coordinates follow from the losses; here the draws keep the meaning that they have.
    changed.__dict__["geometry"] = found.geometry
    return replace(fit, posteriors=(changed,), runs=fit.runs.assign(loss=loss))


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


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/ by name; its folder is on the path while the test runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)
