"""A page in a browser, asked as a reader would ask it, and the same numbers from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecast.analysis.report.page_draws import PageDraws
from tunecast.analysis.report.strata import Stratum

# Sets controls in one go, each one only if a reader could use it.
ASK = """(asked) => {
  for (const [selector, value] of asked) {
    const field = document.querySelector(selector);
    if (field.disabled || !field.checkVisibility()) throw new Error(`${selector} cannot be used`);
    if (field.type === "radio") field.checked = true; else field.value = value;
    if (field.value !== value) throw new Error(`${selector} cannot be '${value}'`);
    for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
  }
}"""
SAME = 1e-6  # relative: single precision holds the draws, double the arithmetic


class Visit:
    """One page in a browser, with all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("page.drawn && page.mapped", timeout=60_000)

    def ask(self, **values: str) -> None:
        """Choose task and base model, loss, and type numbers, as a reader would."""
        asked = []
        for name, value in values.items():
            if name in ("setting", "base"):
                selector = f"#ask-{name}"
            elif name == "kind":
                selector = f"input[name=kind][value={value}]"
            else:
                selector = f"input[type=number][data-column={name}]"
            asked.append((selector, value))
        self.page.evaluate(ASK, asked)
        self.settle()

    def slide(self, column: str, log10: float) -> float:
        """Move a slider and return the value that the page then shows."""
        self.page.evaluate(
            """([column, value]) => {
              const slider = document.querySelector(`input[type=range][data-column=${column}]`);
              slider.value = value; slider.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [column, log10],
        )
        self.settle()
        return float(self.page.input_value(f"input[type=number][data-column={column}]"))

    def settle(self) -> None:
        """Wait until the page has drawn what it was asked."""
        self.page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def answers(self) -> dict[str, list[float]]:
        """Return q50, q25, q75, q05, q95, P(best) and the extrapolation of each method."""
        rows = self.page.evaluate(
            """[...document.querySelectorAll("#answers tr")].map((row) =>
              [row.cells[0].textContent, ...[...row.cells].slice(1).map((c) => c.dataset.value)])"""
        )
        return {name: list(np.hstack([json.loads(v) for v in rest])) for name, *rest in rows}

    def close(self) -> None:
        """Leave the page."""
        self.page.close()


def in_python(
    held: PageDraws, stratum: Stratum, base: str, kind: str, values: dict[str, float]
) -> dict[str, list[float]]:
    """Return the same numbers as `Visit.answers`, from Python's predictor."""
    named = "method" in held.fit.spec.cell
    rows = [dict(stratum.labels) | ({"method": m} if named else {}) for m in stratum.methods]
    targets = pd.DataFrame(rows).assign(**{held.fit.spec.curve: base}, **values)
    expected = held.expected(targets)
    draws = expected if kind == "expected" else of_a_new_run(held, targets)
    best = expected.argmin(axis=1)
    ready = held.fit.check_targets(targets)
    far = np.max([p.predictor.draws(ready).extrapolation for p in held.predictors], axis=0)
    return {
        " ".join(method.split()) or "all methods": [
            *np.quantile(draws[:, m], [0.5, 0.25, 0.75, 0.05, 0.95]),
            float((best == m).mean()),
            far[m],
        ]
        for m, method in enumerate(stratum.methods)
    }


def of_a_new_run(held: PageDraws, targets: pd.DataFrame) -> np.ndarray:
    """Return draws of the loss of a new run, shape (draws, targets), one luck for all."""
    columns = []
    for i in range(len(targets)):  # alone, each target has the noise of the first
        one = held.fit.check_targets(targets.iloc[[i]])
        columns.append(np.concatenate([p.predictor.draws(one).loss for p in held.predictors]))
    return np.hstack(columns)


def same(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    """Require that the page shows what Python computes, as exactly as it can hold it."""
    assert {" ".join(name.split()) for name in found} == set(wanted)
    for name, numbers in found.items():
        goal = np.array(wanted[" ".join(name.split())])
        # The page holds the logarithm of a loss to seven digits: seven of a loss that a run can
        # have, fewer of the astronomic ones that draws of a prior contain.
        room = SAME * np.maximum(1, np.abs(np.log(np.maximum(goal, 1e-300))) / 5) * goal
        assert (np.abs(numbers - goal) <= room).all(), (name, numbers, goal)
