"""One self-contained page that says what a fit forecasts, how sure it is, and why.

Nothing here samples, but for `contents` with ``backtest=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunecast.analysis import page_figures, trust
from tunecast.analysis.page_law import HELPERS
from tunecast.analysis.plots import axis_name, colours, percent, short
from tunecast.analysis.tables import readable
from tunecast.analysis.thinned import Thinned, settings_of
from tunecast.analysis.verdicts import Answer, answers, default_targets
from tunecast.models.files import default_cache, write_atomically
from tunecast.models.fits import Fit
from tunecast.models.laws import get_law

MAX_ANSWERS = 4  # settings that are answered unasked, those with the most runs
MAX_RUNS = 500  # rows of the table of runs: a page must stay small
# Columns of a run that are worth a look when one points at it.
TOLD = ("run_id", "base_model", "model_size", "pet_params", "finetune_examples", "loss", "seed")


@dataclass(frozen=True)
class Contents:
    """All that a report says, whatever its format.

    Parameters
    ----------
    fit : Fit
        The fit.
    answers : list of Answer
        One for each target.
    checks : list of Check
        Coverage checks: each run left out, and the backtests if they were made.
    plan : DataFrame or None
        From ``tunecast plan``.
    track : DataFrame or None
        Scores of earlier forecasts.
    commands : tuple of str
        How the report was made.
    """

    fit: Fit
    answers: list[Answer]
    checks: list[trust.Check]
    plan: pd.DataFrame | None = None
    track: pd.DataFrame | None = None
    commands: tuple[str, ...] = ()
    thinned: Thinned = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "thinned", Thinned(self.fit))

    @cached_property
    def parameters(self) -> trust.Parameters:
        """Priors and posteriors."""
        return trust.parameters(self.fit)

    @property
    def unanswered(self) -> int:
        """How many settings with runs the answers say nothing of."""
        names = list(self.thinned.settings[0].labels)
        told = {tuple(str(a.target.get(n, "")) for n in names) for a in self.answers}
        return sum(tuple(s.labels.values()) not in told for s in self.thinned.settings)

    @property
    def methods(self) -> list[str]:
        """Every method of the runs."""
        return sorted(self.fit.runs["method"].astype(str).unique())

    @property
    def warnings(self) -> list[str]:
        """What a reader should know first."""
        far = [float(a.forecasts["extrapolation"].max()) for a in self.answers]
        return trust.warnings_of(self.fit, far)

    @property
    def provenance(self) -> list[tuple[str, str]]:
        """Name and value of everything that the numbers follow from."""
        info, question = self.fit.info, self.fit.question
        law = get_law(question.law)
        rows = [
            ("data digest (SHA-256)", str(info.get("digest", "unknown"))),
            ("runs fitted", str(len(self.fit.runs))),
            ("law", f"{info.get('law', law.name)}: {law.latex} ({law.reference})"),
            ("weights of laws", ", ".join(
                f"{m.layout.question.law} {m.weight:.2f}" for m in self.fit.members)),
            ("factors", ", ".join(question.factors) or "none"),
            ("data axis", question.data),
            ("cells", " by ".join(question.cell)),
            ("priors", str(info.get("priors_name", "given in Python"))),
            ("sampler", ", ".join(f"{info[k]} {k}" for k in ("chains", "tune", "draws")
                                  if k in info)),
            ("seed", str(info["seed"])),
            ("versions", ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items())),
            ("page made by", f"tunecast {version('tunecast')}, {plotting_release()}"),
        ]  # fmt: skip
        return [(name, value) for name, value in rows if value]

    @property
    def priors(self) -> pd.DataFrame:
        """The prior table."""
        table = self.fit.members[0].priors
        rows = [
            {"quantity": k, "location": p.location, "scale": p.scale, "effect": p.effect,
             "scatter": p.scatter, "meaning": p.meaning}
            for k, p in table.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)


def contents(
    fit: Fit,
    *,
    targets: pd.DataFrame | None = None,
    plan: pd.DataFrame | None = None,
    track: pd.DataFrame | None = None,
    commands: Sequence[str] = (),
    backtest: bool = False,
) -> Contents:
    """Return what a report on a fit says.

    Parameters
    ----------
    fit : Fit
        The fit.
    targets : DataFrame, optional
        The places that the answer is about, as `Fit.compare` takes them; by default one for each
        task, at the largest model and ten times the data.
    plan : DataFrame, optional
        From ``tunecast plan``.
    track : DataFrame, optional
        Scores of earlier forecasts.
    commands : sequence of str, optional
        How the report was made.
    backtest : bool, optional
        Whether to fit twice more, without the largest size and without the largest data.
    """
    places = _unasked(fit) if targets is None else targets
    checks = [trust.left_out(fit), *(trust.held_out(fit) if backtest else ())]
    return Contents(fit, answers(fit, places), checks, plan, track, tuple(commands))


def _unasked(fit: Fit) -> pd.DataFrame:
    runs = np.array([setting.runs for setting in settings_of(fit)])
    return default_targets(fit).iloc[np.sort((-runs).argsort(kind="stable")[:MAX_ANSWERS])]


def html(told: Contents) -> str:
    """Return the report as one HTML page that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tunecast.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": readable}
    folder = files("tunecast.analysis") / "templates"
    figures = _figures(told)
    page = {
        "model": told.thinned.payload(),
        "figures": figures,
        "colours": _colours(told),
        "runs": _runs(told),
        "start": _start(told),
        "words": dict(_sliders(told)),
    }
    return environment.get_template("report.html.j2").render(
        told=told,
        fit=told.fit,
        answer_table=answer_table,
        heads=heads,
        figures=figures,
        settings=told.thinned.settings,
        sliders=_sliders(told),
        diagnostics=trust.diagnostics_in_words(told.fit),
        coverage=coverage_sentences(told),
        runs=_run_table(told),
        page=_script_json(page),
        laws=f"{HELPERS}\nconst laws = [{', '.join(told.thinned.scripts())}];",
        script=(folder / "page.js").read_text(encoding="utf-8"),
        vega=plotting_library(),
        licence=(folder / "vega.LICENSE").read_text(encoding="utf-8"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
    )


def plotting_release() -> str:
    """Return the name and release of the library that draws the page."""
    import vl_convert

    return f"Vega {vl_convert.get_vega_version()}"


def plotting_library() -> str:
    """Return the script of the library, which the page holds.

    It is taken from an installed package, which needs seconds for it, and kept in the cache.
    """
    import vl_convert

    kept = default_cache() / f"{plotting_release()}, vl-convert {version('vl-convert-python')}.js"
    if not kept.is_file():
        # The address is only the name under which vl-convert holds the module; nothing is fetched.
        name = f"https://cdn.jsdelivr.net/npm/vega@{vl_convert.get_vega_version()}/+esm"
        script = vl_convert.javascript_bundle(f"import * as all from '{name}'; window.vega = all;")
        script = script.replace("</script", "<\\/script")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda path: path.write_text(script, encoding="utf-8"))
    return kept.read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """Return JSON that cannot end the script element which holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _colours(told: Contents) -> dict[str, str]:
    if "method" not in told.fit.question.cell:
        return {"all methods": "#0072B2", "": "#0072B2"}
    return colours(told.methods)


def _figures(told: Contents) -> dict[str, page_figures.Spec]:
    question = told.fit.question
    data = axis_name(question.data)
    factor = axis_name(question.factors[0]) if question.factors else None
    shades = {name: c for name, c in _colours(told).items() if name}
    checks = [row for check in told.checks for row in check.coverage()]
    ppc, reach = trust.predictive_check(told.fit)
    made = {
        "whatif": page_figures.whatif(shades, data),
        **({"map": page_figures.best_map(shades, data, factor)} if len(shades) > 1 else {}),
        "coverage": page_figures.coverage(checks),
        **{
            f"pit-{i}": page_figures.histogram(*check.histogram())
            for i, check in enumerate(told.checks, 1)
        },
        "ppc": page_figures.predictive(ppc, reach),
    }
    return made | {
        name: page_figures.intervals(rows, logarithmic=logarithmic)
        for name, rows, logarithmic in parameter_rows(told.parameters.rows)
    }


def parameter_rows(table: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]], bool]]:
    """Return name, rows and whether the axis is logarithmic of each parameter's figure."""
    made = []
    for parameter, rows in table.groupby("parameter", sort=False):
        name = str(parameter)
        records: list[dict[str, Any]] = []
        for row in rows.to_dict("records"):
            record = {str(k): v for k, v in row.items() if k != "width"}
            published = row["published"]
            record["published"] = None if published is None or pd.isna(published) else published
            record["told"] = {
                "cell": row["cell"],
                "median": f"{row['q50']:.3g}",
                "90 %": f"{row['q05']:.3g} to {row['q95']:.3g}",
                "prior 90 %": f"{row['prior_q05']:.3g} to {row['prior_q95']:.3g}",
            }
            if record["published"] is not None:
                record["told"]["published"] = f"{published:g}"
            records.append(record)
        linear = name == "E" or name.startswith("alpha")
        made.append((f"parameter-{name.replace(':', '-')}", records, not linear))
    return made


def _runs(told: Contents) -> list[dict[str, Any]]:
    question, runs = told.fit.question, told.fit.runs
    rows = []
    names = list(told.thinned.settings[0].labels)
    shown = [c for c in dict.fromkeys((*TOLD, *question.factors, question.data)) if c in runs]
    for row in runs.to_dict("records"):
        rows.append(
            {
                "setting": " / ".join(str(row[n]) for n in names),
                "method": str(row["method"]) if "method" in question.cell else "all methods",
                "data": float(row[question.data]),
                "size": float(row[question.factors[0]]) if question.factors else 1.0,
                "loss": float(row["loss"]),
                "told": {c.replace("_", " "): readable(row[c], c) for c in shown},
            }
        )
    return rows


def _run_table(told: Contents) -> pd.DataFrame:
    question, runs = told.fit.question, told.fit.runs
    names = dict.fromkeys((*TOLD[:1], *question.cell, *TOLD[1:], *question.factors, question.data))
    return runs[[n for n in names if n in runs]].head(MAX_RUNS)


def coverage_sentences(told: Contents) -> list[str]:
    """Return how often runs fell into their 90 % interval, a sentence for each check."""
    said = []
    for check in told.checks:
        row = next(r for r in check.coverage() if r["nominal"] == 90)
        note = ""
        if row["actual"] < row["low"]:
            note = ": the intervals are too narrow there, or the errors come together"
        elif row["actual"] > row["high"]:
            note = ": the intervals are wider than they need be"
        if not check.converged:
            note += "; that fit did not converge"
        said.append(
            f"With {check.name}: {percent(row['actual'])} of {row['runs']} runs lie in their 90 % "
            f"interval (chance allows {percent(row['low'])} to {percent(row['high'])}){note}."
        )
    return said


def _start(told: Contents) -> dict[str, dict[str, float]]:
    """Return where the sliders of each setting stand first: at its target if there is one."""
    question = told.fit.question
    started: dict[str, dict[str, float]] = {}
    for setting, default in zip(
        told.thinned.settings, default_targets(told.fit).to_dict("records"), strict=True
    ):
        matching = [
            a.target
            for a in told.answers
            if all(str(a.target.get(k, v)) == v for k, v in setting.labels.items())
        ]
        chosen: Mapping[Any, Any] = matching[0] if matching else default
        values = {}
        for name in (*question.factors, question.data):
            value = chosen.get(name, default[name])
            value = default[name] if value != value else value
            low, high = _limits(told, setting, name)
            values[name] = float(min(max(float(value), low), high))
        started[setting.name] = values
    return started


def _limits(told: Contents, setting: Any, name: str) -> tuple[float, float]:
    for factor in told.thinned.factors():
        if factor["name"] == name:
            return factor["asked"][0], factor["asked"][1]
    from tunecast.analysis.thinned import DATA_BELOW, DATA_BEYOND

    return setting.low / DATA_BELOW, setting.high * DATA_BEYOND


def _sliders(told: Contents) -> list[tuple[str, str]]:
    question = told.fit.question
    return [(name, axis_name(name)) for name in (*question.factors, question.data)]


def heads(frame: pd.DataFrame) -> dict[str, str]:
    """Return a heading for each column of a table."""
    return {str(name): str(name).replace("_", " ") for name in frame}


def answer_table(answer: Answer) -> pd.DataFrame:
    """Return an answer's forecasts for people, in words where a number alone says little."""
    rows = []
    for row in answer.forecasts.to_dict("records"):
        shown = {"method": row.get("method", "all methods")}
        for kind, name in (("loss", "new run"), ("expected", "expected")):
            low, mid, high = (readable(row[f"{kind}_q{q}"]) for q in ("05", "50", "95"))
            shown |= {name: mid, f"{name}, 90 %": f"{low} to {high}"}
        if "p_best" in row:
            shown["P(best)"] = percent(row["p_best"])
            shown["expected regret"] = f"{row['expected_regret']:.2g}"
        rows.append(shown | {"beyond data": f"{short(row['extrapolation'])} times"})
    return pd.DataFrame(rows)


def write_html(told: Contents, path: str | Path) -> None:
    """Write the page, whole or not at all."""
    text = html(told)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
