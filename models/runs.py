"""The run table: one row for each fine-tuning run, declared once and checked at the border.

What is counted. ``model_size`` counts the parameters of the base model; state in the table's own
notes whether embeddings are among them, and count the same way in every row. ``pet_params`` counts
the parameters that fine-tuning trains beside a frozen base, 0 for full fine-tuning.
``finetune_examples`` counts unique examples seen, not examples times epochs. ``loss`` is the mean
cross-entropy of a held-out test set in nats per target token: perplexity is ``exp(loss)``, bits
are nats divided by ``ln 2``.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import numbers
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_timedelta64_dtype

from tunecast.models.files import locked, write_atomically

STATUSES = ("done", "diverged", "failed")
ORIGINS = ("measured", "simulated")

# Guessing uniformly costs ln(vocabulary): 10.4 nats for 32,000 entries, 12.5 for 256,000, the
# largest in use. A task whose median run is above 12 does worse than a guess, or is in PPL.
GUESSING_NATS = 12.0

# Other held-out losses that tables keep, which should be near ``loss``. A training loss need not
# be: an overfitted one is near 0, as the logarithm of a small loss is.
HELD_OUT_LOSSES = ("dev_loss", "val_loss", "valid_loss", "validation_loss", "eval_loss")


class RunTableError(ValueError):
    """What is wrong with a run table, one sentence for each fault.

    Rows are counted from 1, the header aside. The sentences are in ``args``; ``str`` puts each
    on its own line.
    """

    def __str__(self) -> str:
        """Return the sentences, one a line."""
        return "\n".join(self.args)


# --------------------------------------------------------------------------- the declaration


@dataclass(frozen=True, slots=True)
class Domain:
    """Which values a column takes.

    Parameters
    ----------
    expected : str
        Completes the sentence "must be ...".
    accepts : callable
        Takes the column's present values, as float64 or as text, and returns a boolean array.
    numeric : bool
        Whether the values are numbers.
    """

    expected: str
    accepts: Callable[[pd.Series], Any]
    numeric: bool = True


def one_of(choices: Sequence[str]) -> Domain:
    """Return the domain that consists of the words ``choices``."""
    return Domain("one of " + ", ".join(choices), lambda x: x.isin(list(choices)), numeric=False)


LABEL = Domain("a label", lambda x: x != "", numeric=False)
FINITE = Domain("a finite number", np.isfinite)
POSITIVE = Domain("a finite number > 0", lambda x: np.isfinite(x) & (x > 0))
NON_NEGATIVE = Domain("a finite number >= 0", lambda x: np.isfinite(x) & (x >= 0))
WHOLE = Domain("a whole number >= 0", lambda x: np.isfinite(x) & (x >= 0) & (x == np.floor(x)))


def column(domain: Domain, unit: str, meaning: str) -> dict[str, Any]:
    """Return the metadata of one field of `Run`."""
    return {"domain": domain, "unit": unit, "meaning": meaning}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One fine-tuning run: a row of the run table.

    The fields are the table's columns; `column_table` prints them with units and meanings.
    Fields without a default must be given, ``loss=None`` where ``status`` is not ``"done"``.

    Raises
    ------
    RunTableError
        If a value is outside its column's domain.
    """

    run_id: str = field(metadata=column(LABEL, "", "unique name of the run"))
    task: str = field(metadata=column(LABEL, "", "what was learned, e.g. `wmt14-en-de`"))
    method: str = field(
        metadata=column(LABEL, "", "how: `fmt` (full fine-tuning), `lora`, `prompt`, or any label")
    )
    base_model: str | None = field(
        default=None,
        metadata=column(LABEL, "", "checkpoint name; empty: a checkpoint of the row's own"),
    )
    family: str | None = field(
        default=None,
        metadata=column(LABEL, "", "models whose losses compare, because they share a tokenizer"),
    )
    model_size: float | None = field(
        default=None,
        metadata=column(POSITIVE, "parameters", "size of the base model, counted alike everywhere"),
    )
    pretrain_tokens: float | None = field(
        default=None, metadata=column(POSITIVE, "tokens", "seen by the base model in pre-training")
    )
    pet_params: float | None = field(
        default=None,
        metadata=column(NON_NEGATIVE, "parameters", "trainable ones; 0 for full fine-tuning"),
    )
    finetune_examples: float | None = field(
        default=None,
        metadata=column(NON_NEGATIVE, "examples", "unique examples seen; 0 is zero-shot"),
    )
    loss: float | None = field(
        metadata=column(
            POSITIVE, "nats per target token", "held-out test cross-entropy; PPL is exp(loss)"
        )
    )
    loss_se: float | None = field(
        default=None,
        metadata=column(NON_NEGATIVE, "nats", "sampling error of the test set; told, not fitted"),
    )
    seed: int | None = field(
        default=None, metadata=column(WHOLE, "", "seed of the run, told apart in replicates")
    )
    status: str = field(
        default="done",
        metadata=column(one_of(STATUSES), "", "how it ended; only `done` rows have a loss"),
    )
    origin: str = field(
        default="measured",
        metadata=column(one_of(ORIGINS), "", "whether it was trained or drawn from a law"),
    )
    train_flops: float | None = field(
        default=None, metadata=column(NON_NEGATIVE, "FLOP", "cost of training")
    )
    gpu_seconds: float | None = field(
        default=None, metadata=column(NON_NEGATIVE, "seconds", "cost of training, all devices")
    )
    tokens_per_second: float | None = field(
        default=None,
        metadata=column(POSITIVE, "tokens / second", "trained on, evaluation not counted"),
    )
    mfu: float | None = field(
        default=None,
        metadata=column(
            NON_NEGATIVE, "", "share of the devices' peak FLOP a second that training used"
        ),
    )

    def __post_init__(self) -> None:
        """Reject values outside their domains."""
        row = pd.DataFrame([asdict(self)], dtype=object)
        _checked(row, [f"run {self.run_id!r}"], numeric=(), labels=())


COLUMNS: Mapping[str, Mapping[str, Any]] = {item.name: item.metadata for item in fields(Run)}
REQUIRED = ("run_id", "task", "method", "loss")


def column_table() -> str:
    """Return the columns of the run table as a Markdown table, for people."""
    lines = ["| column | unit | values | meaning |", "|---|---|---|---|"]
    for name, column_ in COLUMNS.items():
        needed = " (required)" if name in REQUIRED else ""
        values = column_["domain"].expected
        lines.append(f"| `{name}`{needed} | {column_['unit']} | {values} | {column_['meaning']} |")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- reading


def embedded_tables() -> tuple[str, ...]:
    """Return the names of the tables that come with the package."""
    entries = files(__package__ or "tunecast.models").joinpath("data").iterdir()
    return tuple(sorted(e.name.removesuffix(".csv") for e in entries if e.name.endswith(".csv")))


def is_url(source: str | Path) -> bool:
    """Return whether a run table is in a database rather than in a file."""
    return isinstance(source, str) and "://" in source


def shown(source: str | Path) -> str:
    """Return the name of a run table for people: a URL without its password."""
    if not is_url(source):
        return str(source)
    hidden = re.sub(r"(://[^:@/]*):.*@", r"\1:***@", str(source))
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", hidden)


def has_runs(source: str | Path) -> bool:
    """Return whether a file or database holds rows yet, rather than waits for its first.

    Raises
    ------
    RunTableError
        If a database cannot be asked.
    """
    if is_url(source):
        from tunecast.models import database

        return database.has_rows(str(source))
    return Path(source).exists() and Path(source).stat().st_size > 0


def read_runs(
    source: str | Path | pd.DataFrame | Sequence[str | Path],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Return a checked run table, one row for each run, in the order given.

    Parameters
    ----------
    source : str, Path, DataFrame or sequence of str or Path
        A CSV or Parquet file, the bare name of an embedded table such as ``"ladder"``, the URL of
        a database, a frame, or several files, names and URLs, which are put one below the other.
        A frame is not changed. A URL is ``"sqlite:///FILE"`` or
        ``"postgresql+psycopg://USER@HOST/DATABASE"``.
    columns : sequence of str, optional
        Columns that the fit uses as factors or as the data axis: each must exist and hold a
        finite number in every ``done`` row. A column declared as text may be named too; it must
        hold a label.
    labels : sequence of str, optional
        Columns that group runs into cells or curves: each must exist and hold a label in every
        ``done`` row, whatever it looks like.

    Returns
    -------
    DataFrame
        All rows, failed and diverged ones included, and all columns, extra ones unchanged.
        Labels are text. Numbers are float64, so that products of sizes and tokens cannot
        overflow; ``seed`` is the exception where it is complete. Defaults are filled in:
        ``status`` "done", ``origin`` "measured", ``base_model`` the row's own ``run_id``.
        ``loss`` and ``loss_se`` of rows that are not done are emptied: a run that blew up has
        not measured anything.

    Raises
    ------
    RunTableError
        With one sentence for every fault found.
    """
    if isinstance(source, pd.DataFrame):
        tables = {"the table": _tidy(source)}
    else:
        sources = [source] if isinstance(source, str | Path) else list(source)
        tables = _load_all(sources)
    faults = [
        fault for name, table in tables.items() for fault in _faults_of_shape(table, name=name)
    ]
    if faults:
        raise RunTableError(*faults)
    places = [
        f"row {row}" if len(tables) == 1 else f"row {row} of '{name}'"
        for name, table in tables.items()
        for row in range(1, len(table) + 1)
    ]
    frame = pd.concat(tables.values(), ignore_index=True)
    return _checked(frame, places, numeric=columns, labels=labels)


def _load_all(sources: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    if not sources:
        raise RunTableError("no run table was given.")
    tables: dict[str, pd.DataFrame] = {}
    faults: list[str] = []
    for source in sources:
        name = shown(source)
        if name in tables:
            faults.append(f"'{name}' is given twice.")
            continue
        try:
            tables[name] = _load(source)
        except RunTableError as error:
            faults.extend(error.args)
    if faults:
        raise RunTableError(*faults)
    return tables


def _load(source: str | Path, **csv_options: Any) -> pd.DataFrame:
    if isinstance(source, str) and source in embedded_tables():
        data = files(__package__ or "tunecast.models").joinpath("data", f"{source}.csv")
        with as_file(data) as path:
            return _tidy(_read_csv(path, **csv_options))
    if is_url(source):
        from tunecast.models import database  # here, so that files need no SQLAlchemy

        return _tidy(database.load(str(source)))
    path = Path(source)
    is_csv = path.suffix.lower() == ".csv"
    if path.is_dir():
        raise RunTableError(f"'{source}' is a folder, not a run table.")
    if not path.exists():
        known = ", ".join(embedded_tables())
        raise RunTableError(f"there is no file '{source}', and no embedded table ({known}).")
    if not is_csv and path.suffix.lower() != ".parquet":
        raise RunTableError(f"'{source}' must end in .csv or .parquet to be read as a run table.")
    try:
        return _tidy(_read_csv(path, **csv_options) if is_csv else pd.read_parquet(path))
    except pd.errors.EmptyDataError:
        raise RunTableError(f"'{source}' is empty.") from None
    except pd.errors.ParserWarning:
        raise RunTableError(f"'{source}' has rows with more fields than its header.") from None
    except Exception as error:  # pyarrow alone has a dozen types for a file that is not Parquet
        suffix = path.suffix[1:]
        raise RunTableError(f"'{source}' cannot be read as {suffix}: {one_line(error)}.") from error


def one_line(error: BaseException) -> str:
    """Return what an error says on one line, without the point at its end."""
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(reason.split()).rstrip(".") or type(error).__name__


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    # pandas would rename a repeated column and drop surplus fields, each without an error.
    with path.open(newline="", encoding="utf-8-sig") as text:
        header = next((row for row in csv.reader(text) if row), [])
    text_columns = {
        name: str
        for name in header
        if name.strip() in COLUMNS and not COLUMNS[name.strip()]["domain"].numeric
    }
    options = {"dtype": text_columns, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            encoding="utf-8-sig",
            index_col=False,
            low_memory=False,
            **options,
        )
    frame.columns = pd.Index(header)
    return frame


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with plain text column names; a named index becomes columns."""
    named = [name for name in frame.index.names if name is not None and name not in frame]
    tidy = frame.reset_index(level=named) if named else frame.copy()
    tidy.columns = pd.Index([str(name).strip() for name in tidy.columns])
    return tidy.reset_index(drop=True)


# --------------------------------------------------------------------------- checking


def _faults_of_shape(frame: pd.DataFrame, *, name: str) -> list[str]:
    repeated = frame.columns[frame.columns.duplicated()].unique()
    faults = [f"column '{c}' appears more than once in '{name}'." for c in repeated]
    if len(frame) == 0:
        faults.append(f"'{name}' has no rows.")
    elif frame.shape[1] == 1 and (found := {";", "\t", "|"} & set(frame.columns[0])):
        faults.append(f"the fields of '{name}' are separated by {found.pop()!r}, not by commas.")
    return faults


def _checked(
    frame: pd.DataFrame, places: Sequence[str], *, numeric: Sequence[str], labels: Sequence[str]
) -> pd.DataFrame:
    """Return ``frame`` with every declared and used column typed, or raise all faults at once."""
    domains = _domains(frame, numeric, labels)
    faults = [_missing_column(name, frame) for name in domains if name not in frame]
    frame = _with_defaults(frame)
    done = frame["status"] == "done"
    used = {*REQUIRED, "base_model", *numeric, *labels}
    for name, domain in domains.items():
        if name not in frame:
            continue
        if name in ("loss", "loss_se"):
            frame[name] = frame[name].where(done)
        values, missing = _typed(frame[name], domain)
        bad = ~missing & ~np.asarray(domain.accepts(values), dtype=bool)
        if name in ("run_id", "task", "method"):
            bad |= missing
        elif name in used:
            bad |= missing & done
        if bad.any():
            faults.append(_fault(name, domain, frame[name], bad, places))
        frame[name] = _without_fraction(values) if name == "seed" else values
    faults += _repeated_ids(frame, places)
    if faults:
        raise RunTableError(*faults)
    return frame


def _domains(
    frame: pd.DataFrame, numeric: Sequence[str], labels: Sequence[str]
) -> dict[str, Domain]:
    """Return the domain of each column that is present, required or used."""
    domains = {
        name: column_["domain"]
        for name, column_ in COLUMNS.items()
        if name in frame or name in REQUIRED
    }
    for names, otherwise in ((numeric, FINITE), (labels, LABEL)):
        for name in names:
            if name not in ("base_model", "status", "origin"):  # these have defaults
                known = COLUMNS[name]["domain"] if name in COLUMNS else otherwise
                domains.setdefault(name, known)
    return domains


def _with_defaults(frame: pd.DataFrame) -> pd.DataFrame:
    filled = frame.copy()
    defaults: dict[str, Any] = {"status": "done", "origin": "measured"}
    if "run_id" in frame:
        defaults["base_model"] = _typed(frame["run_id"], LABEL)[0]
    for name, default in defaults.items():
        if name in frame:
            values, missing = _typed(frame[name], LABEL)
            filled[name] = values.mask(missing, default)
        else:
            filled[name] = default
    return filled


def _typed(series: pd.Series, domain: Domain) -> tuple[pd.Series, pd.Series]:
    """Return the column as float64 or text, and where it is empty."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    missing = series.isna() | (series.astype(str).str.strip() == "")
    if not domain.numeric:
        words = [None if m else _word(v) for v, m in zip(series, missing, strict=True)]
        return pd.Series(words, index=series.index, name=series.name), missing
    if is_bool_dtype(series) or is_datetime64_any_dtype(series) or is_timedelta64_dtype(series):
        numbers_ = np.full(len(series), np.nan)  # pandas would turn a date into nanoseconds
    else:
        numbers_ = pd.to_numeric(series, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return pd.Series(numbers_, index=series.index, name=series.name), missing


def _word(value: object) -> str:
    # A column of labels such as 7 is stored as 7.0 where one place is empty.
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()  # type: ignore[call-overload]


def _without_fraction(seed: pd.Series) -> pd.Series:
    exact = seed.notna().all() and (seed.abs() < 2**53).all() and (seed == seed.round()).all()
    return seed.astype("int64") if exact else seed


def _missing_column(name: str, frame: pd.DataFrame) -> str:
    near = difflib.get_close_matches(name, list(frame.columns), n=1)
    if near:
        return f"column '{name}' is missing; is '{near[0]}' meant?"
    has = ", ".join(str(c) for c in frame.columns[:12])
    more = ", ..." if frame.shape[1] > 12 else ""
    return f"column '{name}' is missing; the table has: {has}{more}."


def _fault(
    name: str, domain: Domain, series: pd.Series, bad: pd.Series, places: Sequence[str]
) -> str:
    first, where_ = _first(bad, places)
    value = series.iloc[first]
    value = value.item() if isinstance(value, np.generic) else value
    empty = pd.api.types.is_scalar(value) and (pd.isna(value) or str(value).strip() == "")
    what = "empty" if empty else reprlib.repr(value)
    whose = " in rows that are done" if name == "loss" else ""
    return f"column '{name}' must be {domain.expected}{whose}, but it is {what} {where_}."


def _repeated_ids(frame: pd.DataFrame, places: Sequence[str]) -> list[str]:
    if "run_id" not in frame:
        return []
    repeated = frame["run_id"].notna() & frame["run_id"].duplicated()
    if not repeated.any():
        return []
    first, where_ = _first(repeated, places)
    value = reprlib.repr(frame["run_id"].iloc[first])
    return [f"column 'run_id' must not repeat, but {value} is there again {where_}."]


def _first(bad: pd.Series, places: Sequence[str]) -> tuple[int, str]:
    first, count = int(np.flatnonzero(bad)[0]), int(bad.sum())
    others = "" if count == 1 else f" ({count} such rows, this is the first)"
    return first, f"in {places[first]}{others}"


# --------------------------------------------------------------------------- questions


def where(frame: pd.DataFrame, expression: str) -> pd.DataFrame:
    """Return the rows of ``frame`` for which ``expression`` holds; the index is kept.

    Parameters
    ----------
    frame : DataFrame
        A run table, or any table.
    expression : str
        A condition on columns in the language of pandas, such as
        ``"finetune_examples <= 25600 and method != 'prompt'"``.

    Raises
    ------
    RunTableError
        If the expression cannot be read, names a column that is not there, or is no condition.
    """
    shown = " ".join(expression.split())
    try:
        # Empty scopes: '@name' must not reach into the variables of the calling code.
        holds = frame.eval(expression, engine="python", local_dict={}, global_dict={})
    except pd.errors.UndefinedVariableError as error:
        has = ", ".join(str(c) for c in frame.columns)
        raise RunTableError(
            f"in the condition '{shown}', {error}; the columns are: {has}."
        ) from None
    except Exception as error:  # the parser raises what Python's and pandas' own parsers raise
        raise RunTableError(
            f"the condition '{shown}' cannot be evaluated: {one_line(error)}."
        ) from error
    if not isinstance(holds, pd.Series) or not is_bool_dtype(holds):
        raise RunTableError(
            f"'{shown}' is no condition; write one such as 'finetune_examples <= 25600'."
        )
    return frame[holds.fillna(False).to_numpy(dtype=bool)]


def describe(frame: pd.DataFrame) -> dict[str, int]:
    """Return how many rows of a checked table have each status, for every status."""
    return {status: int((frame["status"] == status).sum()) for status in STATUSES}


def digest(frame: pd.DataFrame) -> str:
    """Return a SHA-256 of the table's content, 64 hexadecimal digits.

    The order of rows and of columns, the index and the way a number is stored (integer or
    float, CSV or Parquet) do not change it, nor does a column that is empty throughout; any value
    or a column's name does.
    """
    names = sorted(str(name) for name in frame.columns[frame.notna().any()])
    columns = [[_canonical(value) for value in frame[name]] for name in names]
    rows = sorted(json.dumps(row) for row in zip(*columns, strict=True))
    return hashlib.sha256(json.dumps([names, rows]).encode()).hexdigest()


def _canonical(value: Any) -> object:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


def warn_about(frame: pd.DataFrame) -> list[str]:
    """Return what a reader of a checked table should know before trusting a fit to it.

    Parameters
    ----------
    frame : DataFrame
        From `read_runs`.

    Returns
    -------
    list of str
        One sentence each, none if there is nothing to say. Reported are runs that failed or
        diverged, zero-shot rows, simulated rows, and losses that look like perplexities by
        either of two signs: the median ``done`` row of a task is above 12 nats, more than
        guessing uniformly from any vocabulary in use costs; or another column shows it, a
        perplexity column that equals ``loss``, or a development loss that is nearer by far to its
        logarithm.
    """
    done = frame[frame["status"] == "done"]
    counts = describe(frame)
    warned = [
        f"{counts[status]} of {len(frame)} runs {status}; they have no loss and no part in a fit."
        for status in ("diverged", "failed")
        if counts[status]
    ]
    simulated = int((frame["origin"] == "simulated").sum())
    if simulated:
        warned.append(f"{simulated} of {len(frame)} runs are simulated, not measured.")
    if "finetune_examples" in done:
        zero_shot = int((done["finetune_examples"] == 0).sum())
        if zero_shot:
            warned.append(
                f"{zero_shot} runs are zero-shot (finetune_examples is 0), where a power of the "
                "data size has no value."
            )
    return warned + _perplexity_signs(done)


def _perplexity_signs(done: pd.DataFrame) -> list[str]:
    medians = done.groupby("task")["loss"].median()
    advice = "if so, give its natural logarithm"
    signs = [
        f"the median loss of task '{task}' is {median:.4g} nats, worse than guessing: "
        f"it looks like a perplexity; {advice}."
        for task, median in medians[medians > GUESSING_NATS].items()
    ]
    for name in done.columns.drop("loss"):
        other = pd.to_numeric(done[name], errors="coerce")
        if _is_perplexity(name) and _typical_gap(other, done["loss"]) < 0.01:
            signs.append(f"loss equals the column '{name}': it looks like a perplexity; {advice}.")
        elif name in HELD_OUT_LOSSES and (
            _typical_gap(done["loss"].map(math.log), other) < _typical_gap(done["loss"], other) / 2
        ):
            signs.append(
                f"the logarithm of loss is nearer to '{name}' than loss is: "
                f"it looks like a perplexity; {advice}."
            )
    return signs


def _is_perplexity(name: str) -> bool:
    return any(part in ("ppl", "perplexity") for part in name.lower().split("_"))


def _typical_gap(a: pd.Series, b: pd.Series) -> float:
    """Return the median absolute difference, NaN where nothing can be compared."""
    return float((a - b).abs().median())


# --------------------------------------------------------------------------- writing


def append_run(path: str | Path, run: Run, *, extra: Mapping[str, object] | None = None) -> None:
    """Add one row to a run table, making the table if there is none.

    A file is replaced in one step, so that a reader never sees half a row, and processes that
    append to the same file wait for each other. Rows that are there keep their text (CSV) or
    their types (Parquet). A database takes each row in a transaction of its own.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.parquet`` file, or the URL of a database.
    run : Run
        The new row.
    extra : mapping, optional
        Values of further columns, such as a learning rate; they must not repeat a declared name.

    Raises
    ------
    RunTableError
        If the table holds a run of this ``run_id``, cannot be read, or has another suffix.
    OSError
        If the disk refuses; the table is then as it was.
    """
    clash = sorted(COLUMNS.keys() & (extra or {}).keys())
    if clash:
        raise RunTableError(f"extra columns must not repeat declared ones: {', '.join(clash)}.")
    if is_url(path):
        from tunecast.models import database

        return database.append(str(path), asdict(run), extra or {})
    path = Path(path)
    row = {**asdict(run), **(extra or {})}
    append = {".csv": _append_csv, ".parquet": _append_parquet}.get(path.suffix.lower())
    if append is None:
        raise RunTableError(f"'{path}' must end in .csv or .parquet to hold a run table.")
    with locked(path):
        append(path, row)


def _append_csv(path: Path, row: Mapping[str, object]) -> None:
    words = {name: "" if value is None else str(value) for name, value in row.items()}
    new = pd.DataFrame([words])
    if path.exists() and path.stat().st_size > 0:
        # As text, so that the numbers that are there keep their digits.
        old = _load(path, dtype=str, na_filter=False)
        _refuse_repetition(path, old, row)
        new = pd.concat([old, new], ignore_index=True).fillna("")
    write_atomically(path, lambda temporary: new.to_csv(temporary, index=False))


def _append_parquet(path: Path, row: Mapping[str, object]) -> None:
    new = pd.DataFrame([{name: value for name, value in row.items() if value is not None}])
    if path.exists() and path.stat().st_size > 0:
        old = _load(path)
        _refuse_repetition(path, old, row)
        new = pd.concat([old, new], ignore_index=True)
    write_atomically(path, lambda temporary: new.to_parquet(temporary, index=False))


def _refuse_repetition(path: Path, table: pd.DataFrame, row: Mapping[str, object]) -> None:
    if "run_id" not in table:
        raise RunTableError(f"'{path}' has no column 'run_id', so it is not a run table.")
    if (table["run_id"].astype(str).str.strip() == str(row["run_id"]).strip()).any():
        raise RunTableError(f"'{path}' already has a run {row['run_id']!r}.")
