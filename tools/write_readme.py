"""Writes the parts of README.md that the code knows: figures, columns, files.

python tools/write_readme.py              (after a change of the code)
python tools/write_readme.py forecasts    (also takes over what 'make forecast' found there)
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tunecast.models import LAWS
from tunecast.models.files import write_atomically
from tunecast.models.runs import column_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FIGURES = ROOT / "tools" / "figures"
RESULTS = ROOT / "benchmarks" / "results"
# The packages of models/: each imports those before it alone.
GROUND_UP = (
    "runs", "laws", "pointfits", "hierarchy", "compile", "inference", "checks",
    "questions", "planning", "fits",
)  # fmt: skip
# What a run of make_forecast.py leaves for the README, by its name there.
TAKEN = ("numbers.json", "ladder.png")


def main(forecasts: Path | None = None) -> None:
    """Renew the generated parts of the README, and first their source if one is given."""
    if forecasts is not None:
        FIGURES.mkdir(exist_ok=True)
        for name in TAKEN:
            shutil.copyfile(forecasts / name, FIGURES / name)
    text = rendered(README.read_text(encoding="utf-8"))
    write_atomically(README, lambda path: path.write_text(text, encoding="utf-8"))


def rendered(readme: str) -> str:
    """Return the text with every generated part renewed."""
    numbers, speed = _read(FIGURES / "numbers.json"), _read(RESULTS / "speed.json")
    parts = {
        "numbers": _numbers(numbers),
        "columns": column_table(),
        "laws": _laws(),
        "backtest": _backtest(_read(RESULTS / "backtest.json")),
        "zoo": _zoo(_read(RESULTS / "zoo.json")),
        "worlds": _worlds(_read(RESULTS / "worlds.json")),
        "speed": _speed(speed),
        "ablation": _ablation(speed["ablation"]),
        "plans": _plans(_read(RESULTS / "plan_worlds.json")),
        "real plans": _real_plans(_read(RESULTS / "rectified.json")),
        "inside plans": _real_plans(_read(RESULTS / "inside.json")),
        "scalebench": _scalebench(
            {name: _read(RESULTS / f"{name}.json") for name in ("parallel", "sparsity")}
        ),
        "files": _files(),
    }
    for name, text in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = readme.partition(start)
        _, found, after = rest.partition(end)
        assert found, f"README.md has no part between {start} and {end}"
        readme = f"{before}{start}\n{text}{end}{after}"
    return readme


def _numbers(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| table | runs | fitted | forecast | in the 50 % interval | in the 90 % interval "
        "| median error | converged |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in numbers.items():
        inside = [f"{found[key]} of {found['forecast']}" for key in ("inside50", "inside90")]
        lines.append(
            f"| `{name}` | {found['origin']} | {found['fitted']} | {found['forecast']} "
            f"| {inside[0]} | {inside[1]} | {found['median_error']:.3f} nats "
            f"| {'yes' if found['converged'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


def _backtest(found: Mapping[str, Any]) -> str:
    """Means over the splits that tunecast has run, for each forecaster that has run them."""
    every = [row for row in found["scores"] if row["group"] == "all"]
    ours = {row["split"] for row in every if row["forecaster"] == "tunecast"}
    scored: dict[str, list[Mapping[str, Any]]] = {}
    for row in every:
        if row["split"] in ours:
            scored.setdefault(row["forecaster"], []).append(row)
    lines = [
        "| forecaster | splits | CRPS | tunecast's there | log score | tunecast's there "
        "| 90 % coverage | lowest of a split |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, some in scored.items():
        splits = {row["split"] for row in some}
        same = [row for row in scored["tunecast"] if row["split"] in splits]
        cover = [row["cover90"] for row in some]
        cells = [name, str(len(some))]
        for key, digits in (("crps", 4), ("log_score", 2)):
            cells += [f"{fmean(row[key] for row in rows):.{digits}f}" for rows in (some, same)]
        cells += [f"{fmean(cover):.3f}", f"{min(cover):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _zoo(found: Mapping[str, Any]) -> str:
    """Means over the tables that each forecaster could do, and over those that all could."""
    heads = (
        "forecaster", "tables", "50 % coverage", "90 % coverage", "lowest of a table", "CRPS",
        "CRPS where all could", "tables won by CRPS",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    best = [won["lowest CRPS"] for won in found["winners"].values()]
    for name, mean in found["averages"].items():
        cells = [name, f"{mean['tables']} of {mean['of']}"]
        same = found["averages_common"][name].get("crps")
        for value, digits in (
            *((mean.get(key), 3) for key in ("cover50", "cover90", "worst90")),
            *((value, 4) for value in (mean.get("crps"), same)),
        ):
            cells.append("" if value is None else f"{value:.{digits}f}")
        lines.append(f"| {' | '.join([*cells, str(best.count(name))])} |")
    told = f"All could do {len(found['common'])} tables. The lowest coverage is that of a table"
    return "\n".join([*lines, "", f"{told} with 20 runs to forecast or more.", ""])


def _worlds(found: Mapping[str, Any]) -> str:
    lines = ["| interval | runs at 16B inside | standard error |", "|---|---|---|"]
    for line in found["coverage"]:
        lines.append(
            f"| {line['nominal']:.0%} | {line['coverage']:.1%} | {line['standard_error']:.1%} |"
        )
    winners = found["winners"]
    scores = [
        f"{name} {winners[key]['brier']:.3f}"
        for name, key in (
            ("`p_best`", "p_best"),
            ("the winner by point fits", "point_fit"),
            ("always a third", "always_a_third"),
        )
    ]
    told = f"Over {found['worlds']} worlds. Brier score of the best method at 16B: "
    return "\n".join([*lines, "", told + ", ".join(scores) + ".", ""])


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _laws() -> str:
    rows = [f"| `{law.name}` | ${law.latex}$ | {law.reference} |\n" for law in LAWS.values()]
    return "| law | loss | published |\n|---|---|---|\n" + "".join(rows)


def _speed(found: Mapping[str, Any]) -> str:
    """Wall time of commands, and effective draws a second with and without a geometry."""
    ran = found["commands"]
    heads = ("command", "seconds", "R-hat", "divergences")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in ("ladder", "rectified_ft"):
        fit = ran[name]
        lines.append(
            f"| `tunecast fit`, {fit['runs']} runs (`{name}`) "
            f"| {fit['seconds']:.0f} | {fit['rhat_max']:.3f} | {fit['divergences']} |"
        )
    lines.append(f"| `tunecast forecast` | {ran['forecast']:.1f} | | |")
    lines.append(f"| `tunecast --help` | {ran['help']:.1f} | | |")
    lines += ["", f"On {found['cores']} cores, start-up and compilation included.", ""]
    return "\n".join(lines)


def _ablation(found: Mapping[str, Any]) -> str:
    """Effective draws a second of each way to sample, from the slowest to the fastest seed."""
    heads = ("sampled", "seeds that reached R-hat 1.05", "effective draws a second")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, way in found["ways"].items():
        rates = f"{way['lowest']:.3g} to {way['highest']:.3g}" if way["reached"] else ""
        lines.append(f"| {name} | {way['reached']} of {found['seeds']} | {rates} |")
    told = f"{found['runs']} runs, at most {found['limit']:.0f} seconds for a seed."
    return "\n".join([*lines, "", told, ""])


def _plans(found: Mapping[str, Any]) -> str:
    scores = (("right", "right winner"), ("regret", "regret"), ("crps", "CRPS"))
    return _by_share(found, scores) + f"\nOver {found['worlds']} worlds, ± standard errors.\n"


def _real_plans(found: Mapping[str, Any]) -> str:
    told = f"\nOver {found['starts']} starts, ± standard errors.\n"
    return _by_share(found["scores"], (("crps", "CRPS"),)) + told


def _by_share(found: Mapping[str, Any], scores: Sequence[tuple[str, str]]) -> str:
    """Scores of each way to choose runs, and of the whole pool, by share of the pool's cost."""
    shares = (0.01, 0.05, 0.1)
    columns = {
        f"{told}, {share:.0%}": _column(found, share, score, ".1%" if score == "right" else ".4f")
        for score, told in scores
        for share in shares
    }
    return _chosen_by(columns, _ways(found))


def _scalebench(found: Mapping[str, Any]) -> str:
    """R^2 by way of choosing and share of the cost, beside what a paper reports of its own law."""
    columns: dict[str, dict[str, str]] = {}
    shares = {"parallel": (0.01, 0.05, 0.1), "sparsity": (0.01, 0.05, 0.1, 0.5)}
    for table, body in found.items():
        for share in shares[table]:
            columns[f"`{table}`, {share:.0%}"] = _column(body["scores"], share, "r2", ".2f")
        printed = {name: f"{r2:.2f}" for name, r2 in body["published"].items()}
        columns[f"printed, {share:.0%}"] = printed
    ways = [*_ways(found["parallel"]["scores"]), "SL2"]
    told = f"\nOver {found['parallel']['starts']} starts, ± standard errors.\n"
    return _chosen_by(columns, ways) + told


def _ways(found: Mapping[str, Any]) -> list[str]:
    """Return the ways to choose of which a benchmark tells scores."""
    return list(dict.fromkeys(k.rpartition(" ")[0] for k in found if k.endswith(" 0.1")))


def _column(found: Mapping[str, Any], share: float, score: str, digits: str) -> dict[str, str]:
    """Return a score with its error for each way to choose, and for the whole pool."""
    lines = {name: found[f"{name} {share:g}"] for name in _ways(found)}
    lines["whole pool"] = found["whole pool"]
    told = {name: line[score] for name, line in lines.items()}
    return {n: f"{v['mean']:{digits}} ± {v['error']:{digits}}" for n, v in told.items()}


def _chosen_by(columns: Mapping[str, Mapping[str, str]], ways: Sequence[str]) -> str:
    """Return a table of columns, with a line for each way to choose and for the whole pool."""
    lines = [f"| chosen by | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in (*ways, "whole pool"):
        lines.append(f"| {name} | {' | '.join(c.get(name, '') for c in columns.values())} |")
    return "\n".join(lines) + "\n"


def _files() -> str:
    """List each package, and each file that stands in none, with what it is about."""
    told = {}
    for part in ("models", "training", "analysis", "tools"):
        for path in sorted((ROOT / part).rglob("*.py"), key=_reading_order):
            is_package = path.name == "__init__.py"
            if is_package or part == "tools":
                name = path.parent if is_package else path
                first, _, _ = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")
                told[name.relative_to(ROOT).as_posix() + "/" * is_package] = first
    width = max(map(len, told))
    lines = [f"{name:<{width}}  {first}".rstrip() for name, first in told.items()]
    return "\n".join(["```", *lines, "```"]) + "\n"


def _reading_order(path: Path) -> tuple[int, str]:
    """Sort the packages of `models` from the ground up, what a package is about first."""
    part = path.relative_to(ROOT).parts
    floor = GROUND_UP.index(part[1]) if part[0] == "models" and part[1] in GROUND_UP else -1
    return floor, path.as_posix().replace("__init__", "")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
