"""Recipes: which runs a sweep makes. Functions that return frozen dataclasses, nothing else.

A recipe of your own is such a function in a file of yours: ``tunecast sweep my.py:recipe``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunecast.models.errors import TunecastError
from tunecast.training.base_models import BaseModel, Pretraining, Rung
from tunecast.training.budget import Budget
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.tasks import TaskSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Runs that differ in their seed alone.

    Parameters
    ----------
    task : TaskSource
        What is learned.
    base : Hub or Rung
        From where.
    method : FMT, LoRA or Prompt
        How.
    examples : int
        From how many training examples.
    """

    task: TaskSource
    base: BaseModel
    method: Method
    examples: int

    def run_id(self, seed: int) -> str:
        """Return the name of the run with this seed."""
        setting = f"{self.method.label}{self.method.setting or ''}"
        return f"{self.task.name}/{self.base.name}/{setting}/{self.examples}/s{seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All runs of a sweep.

    Parameters
    ----------
    name : str
        For people.
    cells : tuple of Cell
        In the order in which they are made.
    seeds : tuple of int
        Each cell is run with each. The first one searches the learning rate of its cell, the
        others take it over.
    rates : mapping of str to tuple of float
        Candidate learning rates by method label, ascending, as many for each method.
    budget : Budget
        Of every run.

    Raises
    ------
    TunecastError
        If the methods have different numbers of candidates, a run occurs twice, or nothing is to
        be done.
    """

    name: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    rates: Mapping[str, tuple[float, ...]]
    budget: Budget

    def __post_init__(self) -> None:
        """Reject an unfair search and runs that occur twice."""
        if not self.cells or not self.seeds:
            raise TunecastError(f"recipe '{self.name}' has no cells or no seeds.")
        used = sorted({cell.method.label for cell in self.cells})
        if missing := [label for label in used if not self.rates.get(label)]:
            raise TunecastError(f"recipe '{self.name}' has no learning rates for '{missing[0]}'.")
        counts = {label: len(self.rates[label]) for label in used}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{label} {count}" for label, count in counts.items())
            raise TunecastError(
                f"recipe '{self.name}' must try as many learning rates for each method ({told})."
            )
        ids = [cell.run_id(0) for cell in self.cells]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise TunecastError(f"recipe '{self.name}' has '{twice}' twice.")


def grid(
    tasks: Iterable[TaskSource],
    bases: Iterable[BaseModel],
    methods: Iterable[Method],
    examples: Sequence[int],
) -> tuple[Cell, ...]:
    """Return every combination, the last factor varying fastest, base models first.

    Parameters
    ----------
    tasks : iterable of TaskSource
        What is learned.
    bases : iterable of Hub or Rung
        From where.
    methods : iterable of FMT, LoRA or Prompt
        How.
    examples : sequence of int
        From how many training examples.
    """
    methods, tasks = tuple(methods), tuple(tasks)
    return tuple(
        Cell(task=task, base=base, method=method, examples=count)
        for base in bases
        for task in tasks
        for method in methods
        for count in examples
    )


# A factor of 4 apart. In pilot runs the best rate of full tuning rose from 3e-4 at 30 examples to
# 3e-3 at 3,000, that of LoRA from 3e-3 to 1e-2 and that of a prompt from 0.03 to 0.3.
RATES: Mapping[str, tuple[float, ...]] = {
    "fmt": (1e-4, 4e-4, 1.6e-3, 6.4e-3),
    "lora": (5e-4, 2e-3, 8e-3, 3.2e-2),
    "prompt": (0.015, 0.06, 0.25, 1.0),
}


def rungs(pretraining: Pretraining, shapes: Iterable[tuple[int, int, int]]) -> list[Rung]:
    """Return the sizes of a ladder from their layers, widths and heads."""
    return [
        Rung(pretraining=pretraining, layers=layers, width=width, heads=heads)
        for layers, width, heads in shapes
    ]


def tiny() -> Recipe:
    """Return 48 runs of two very small models on the docstrings: minutes, and no network."""
    task = TaskSource(name="docstrings", max_source=128, max_target=40)
    pretraining = Pretraining(family="tiny", corpus=task, tokens=400_000, vocabulary=2048)
    return Recipe(
        name="tiny",
        cells=grid(
            [task],
            rungs(pretraining, [(2, 32, 2), (3, 48, 3)]),
            [FMT(), LoRA(), Prompt()],
            (20, 60, 200, 600),
        ),
        seeds=(0, 1),
        rates={label: rates[:3] for label, rates in RATES.items()},
        budget=Budget(
            epochs=2, examples=400, evaluations=4, patience=2, dev_examples=64, test_examples=128
        ),
    )


def ladder() -> Recipe:
    """Return the runs of the embedded table: four sizes, three methods, two tasks."""
    translate = TaskSource(name="debian-en-de", max_source=48, max_target=64, pool=20_000)
    summarise = TaskSource(name="debian-summarise", max_source=96, max_target=24, pool=20_000)
    pretraining = Pretraining(
        family="debian-2k",
        corpus=replace(translate, pool=None),
        languages=("en", "de"),
        tokens=2_500_000,
        parts=(0.25, 0.5, 1.0),
        vocabulary=2048,
    )
    cells = grid(
        [translate, summarise],
        rungs(pretraining, [(2, 32, 2), (2, 48, 3), (3, 64, 4), (4, 80, 5)]),
        [FMT(), LoRA(), Prompt()],
        (30, 75, 190, 480, 1200, 3000),
    )
    return Recipe(
        name="ladder",
        # Few examples first: wherever it is stopped, the table is a complete design.
        cells=tuple(sorted(cells, key=lambda cell: cell.examples)),
        seeds=(0, 1),
        rates=RATES,
        budget=Budget(
            epochs=2, examples=1000, evaluations=8, patience=3, dev_examples=128, test_examples=800
        ),
    )


def h200(
    *,
    shapes: Sequence[tuple[int, int, int]] = (
        (6, 144, 6),
        (9, 192, 8),
        (10, 288, 6),
        (12, 384, 8),
        (15, 512, 8),
    ),
    tiers: Sequence[Sequence[int]] = ((500, 1000, 2000, 4000), (8000, 16_000), (30_000,)),
    translation: TaskSource | None = None,
    summary: TaskSource | None = None,
    pretraining: Pretraining | None = None,
    budget: Budget | None = None,
) -> Recipe:
    """Return a ladder from 1.8 to 56 million parameters that one H200 makes in twenty minutes.

    About 5.5e16 FLOP are for the base models (``tunecast sweep h200 --prepare``) and as much for
    the runs: at 1e14 a second, a tenth of the peak, ten minutes each. Runs come in tiers of ever
    more examples, so that wherever a sweep is stopped the table is nearly a complete design; within
    a tier the runs of one task, base model and method train side by side.

    Parameters
    ----------
    shapes : sequence of (int, int, int)
        Layers, widths and heads.
    tiers : sequence of sequences of int
        Numbers of examples, those that are to be made first in front.
    translation, summary : TaskSource, optional
        The tasks; by default Debian's descriptions.
    pretraining : Pretraining, optional
        Of the base models; by default on Debian's descriptions in English and German.
    budget : Budget, optional
        Of every run.
    """
    most = max(max(tier) for tier in tiers)
    translate = translation or TaskSource(
        name="debian-en-de", max_source=64, max_target=80, pool=most
    )
    summarise = summary or TaskSource(
        name="debian-summarise", max_source=96, max_target=24, pool=most
    )
    plan = pretraining or Pretraining(
        family="debian-8k",
        corpus=replace(translate, pool=None),
        languages=("en", "de"),
        tokens=80_000_000,
        vocabulary=8192,
        block=256,
        batch=128,
    )
    bases = rungs(plan, shapes)
    cells = [
        cell
        for tier in tiers
        for cell in grid([translate, summarise], bases, [FMT(), LoRA(), Prompt()], tier)
    ]
    return Recipe(
        name="h200",
        cells=tuple(cells),
        seeds=(0, 1),
        rates={label: rates[:3] for label, rates in RATES.items()},
        budget=budget
        or Budget(
            epochs=1, examples=3000, evaluations=8, patience=3, dev_examples=256, test_examples=1000
        ),
    )


def zhang2024() -> Recipe:
    """Return the design of arXiv:2402.17193, Table 1b, with the shapes of its Table 3.

    The text of its pre-training is not public: a corpus of the translation task stands in. Factors
    other than the size of the model vary on the 1B model alone, as there, and only at 100,000
    examples for the settings of the adapters.
    """
    shapes = ((16, 2048, 8), (20, 2560, 10), (24, 3072, 12), (32, 4096, 16), (40, 5120, 20))
    lengths, ranks = (50, 150, 200, 300, 400, 600), (8, 16, 32, 48, 64, 128)
    small = (8_000, *range(10_000, 100_001, 10_000))
    full = {
        "wmt14-en-de": (100_000, *range(500_000, 4_500_001, 500_000)),
        "wmt19-en-zh": (
            *range(1_000_000, 5_000_001, 1_000_000),
            *range(10**7, 25 * 10**6 + 1, 5 * 10**6),
        ),
        "mlsum": tuple(range(100_000, 900_001, 100_000)),
    }
    tokens = {
        "wmt14-en-de": (283e9, (84e9, 126e9, 167e9, 209e9)),
        "wmt19-en-zh": (206e9, (84e9, 105e9, 126e9, 147e9, 167e9)),
        "mlsum": (283e9, (84e9, 126e9, 167e9, 209e9)),
    }
    sources = {
        "wmt14-en-de": TaskSource(
            name="wmt14-en-de",
            path="wmt/wmt14",
            config="de-en",
            source="translation.en",
            target="translation.de",
            max_source=256,
            max_target=256,
        ),
        "wmt19-en-zh": TaskSource(
            name="wmt19-en-zh",
            path="wmt/wmt19",
            config="zh-en",
            source="translation.en",
            target="translation.zh",
            max_source=256,
            max_target=256,
        ),
        "mlsum": TaskSource(
            name="mlsum",
            path="reciTAL/mlsum",
            config="de",
            source="text",
            target="summary",
            max_source=512,
            max_target=256,
        ),
    }
    cells: list[Cell] = []
    for name, task in sources.items():
        seen, earlier = tokens[name]
        learned = sources["wmt14-en-de" if name == "mlsum" else name]
        pretraining = Pretraining(
            family="en-zh" if name == "wmt19-en-zh" else "en-de",
            corpus=learned,
            tokens=int(seen),
            parts=(*(count / seen for count in earlier), 1.0),
            vocabulary=32_000,
            context=2048,
            block=1024,
            batch=2048,
        )
        sizes = rungs(pretraining, shapes)
        parts = [replace(sizes[0], part=part) for part in pretraining.parts if part != 1]
        for method, counts in ((FMT(), full[name]), (LoRA(4), small), (Prompt(100), small)):
            cells += grid([task], [*sizes, *parts], [method], counts)
        settings: list[Method] = [*map(Prompt, lengths), *map(LoRA, ranks)]
        cells += grid([task], sizes[:1], settings, small[-1:])
    return Recipe(
        name="zhang2024",
        cells=tuple(cells),
        seeds=(0, 1, 2),
        rates={"fmt": (3e-6, 1e-5, 3e-5), "lora": (1e-4, 3e-4, 1e-3), "prompt": (0.03, 0.1, 0.3)},
        budget=Budget(epochs=3, batch=16, evaluations=20, patience=5, test_examples=3000),
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "ladder": ladder,
    "h200": h200,
    "zhang2024": zhang2024,
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or by file and function: ``my.py:recipe``.

    Raises
    ------
    TunecastError
        If there is none, or it returns something else.
    """
    if name in RECIPES:
        return RECIPES[name]()
    path, _, function = name.rpartition(":")
    if not path:
        known = ", ".join(RECIPES)
        raise TunecastError(f"there is no recipe '{name}' ({known}); yours is 'FILE.py:function'.")
    if not Path(path).is_file():
        raise TunecastError(f"there is no file '{path}' with a recipe.")
    spec = importlib.util.spec_from_file_location("tunecast_recipe", path)
    if spec is None or spec.loader is None:
        raise TunecastError(f"'{path}' is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, function, None)
    recipe = made() if callable(made) else None
    if not isinstance(recipe, Recipe):
        raise TunecastError(f"'{function}' in '{path}' is not a function that returns a Recipe.")
    return recipe
