"""How many runs train side by side."""

from typing import Any

import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from stack_cases import BUDGET

from tunecast.training import side_by_side
from tunecast.training.batches import pool_of
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method
from tunecast.training.side_by_side import measured_step, places_for
from tunecast.training.stacked import NotStackable


def test_the_number_of_places_is_the_fastest_measured(
    base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more stop paying, where memory ends, where stacking is slower, and where it cannot."""

    def chosen(method: Method, seconds: dict[int, Any]) -> int:
        def measured_step(*args: Any) -> tuple[float, float]:
            found = seconds[args[-1]]
            if isinstance(found, Exception):
                raise found
            return float(found), 1.0

        monkeypatch.setattr(side_by_side, "measured_step", measured_step)
        places_for.cache_clear()
        return places_for(base, task, method, BUDGET)

    full = torch.OutOfMemoryError("CUDA out of memory.")
    assert chosen(LoRA(2), {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 3.9}) == 8
    assert chosen(LoRA(2), {1: 1.0, 2: 1.0, 4: full}) == 2
    assert chosen(LoRA(2), {1: 1.0, 2: 2.1}) == 1
    assert chosen(LoRA(2), {1: 1.0, 2: NotStackable("no")}) == 1
    assert chosen(LoRA(2), {1: full}) == 1
    monkeypatch.setattr(side_by_side, "free_memory", lambda device: 5 * 6 * 4 * 14288)
    assert chosen(FMT(), dict.fromkeys((1, 2, 4), 1.0)) == 4


def test_a_step_is_measured(base: Loaded, task: Encoded) -> None:
    pool = pool_of(task.train)
    one, many = (measured_step(base, task, pool, LoRA(2), BUDGET, places) for places in (1, 8))
    assert min(one[0], many[0]) > 0
    # Eight runs of other examples, so not quite eight times as much.
    assert many[1] == pytest.approx(8 * one[1], rel=0.2)
