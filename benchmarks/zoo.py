"""Question: on tables that are hard in many ways, does a fit with default options hold, and whose?

    python benchmarks/zoo.py [--only NAME] [--forecaster NAME] [--limit 600] [--again]

The tables, with what is hard about each and its split, are in zoo_tables.py (public ones) and
zoo_simulated.py (made ones). Forecasters get the same rows: tunecast with its default options;
least squares by curve, and by group under the multiplicative and the additive law, with bootstrap;
split conformal intervals around least squares; simple-scaling-laws with its new-run intervals.

Scores are on log loss: CRPS, log score (of a kernel estimate, as peers have no density), coverage
of the 50 and 90 % intervals, over all held-out rows and by how many times beyond the data a row
lies, as tunecast tells it. A forecaster that cannot is quoted with its sentence; one that does
something simpler on some of the rows counts, and the rows are told. Each forecast is a process of
its own, timed from command to end, with its peak memory, of which some 190 MiB are this process's.
It is saved as soon as it is there, so a killed run goes on where it stopped; forecasts of another
version of a table are made again. Public tables that are not there are skipped. The peers take
about 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resume import save
from zoo_averages import averages, done_by_all, printed, winners
from zoo_one import DONE, ENTRIES, PEERS, TUNECAST

HERE = Path(__file__).parent
POLL = 0.02  # seconds between looks at whether a process has ended


def measured(name: str, forecaster: str, limit: float) -> dict[str, Any]:
    """Return the answer of a forecaster on a table, with the seconds and the memory it took."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "answer.json"), Path(folder, "log.txt")
        command = [sys.executable, str(HERE / "zoo_one.py"), name, forecaster, str(out)]
        started = time.perf_counter()
        with log.open("w") as stream:
            child = subprocess.Popen(command, stdout=stream, stderr=stream)
            try:
                in_time, status, peak = ended(child.pid, started + limit)
            except BaseException:  # an interrupt must not leave a fit running
                child.kill()
                child.wait()
                raise
        child.returncode = os.waitstatus_to_exitcode(status)
        taken = {"seconds": time.perf_counter() - started, "peak_mib": peak}
        if not in_time:
            return {"outcome": f"stopped after {limit:g} seconds", **taken}
        if not out.exists():
            said = log.read_text().strip().splitlines() or ["nothing was said"]
            told = f"error: ended with code {child.returncode}: {said[-1]}"
            return {"outcome": told, **taken}
        return json.loads(out.read_text()) | taken


def ended(pid: int, until: float) -> tuple[bool, int, float]:
    """Wait for a process: whether it ended in time, how, and its peak memory in MiB."""
    in_time = True
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            unit = 1 if sys.platform == "darwin" else 1024
            return in_time, status, usage.ru_maxrss * unit / 2**20
        if in_time and time.perf_counter() > until:
            in_time = False
            os.kill(pid, 9)
        time.sleep(POLL)


def asked(only: str, forecaster: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of table and forecaster whose names hold these words; ``peers`` is all peers."""
    named = [who for who in (*PEERS, TUNECAST) if forecaster in who]
    for name in ENTRIES:
        if only in name:
            for who in PEERS if forecaster == "peers" else named:
                yield name, who


def main(out: Path, only: str, forecaster: str, limit: float, again: bool) -> None:
    """Make what is missing, print it, save it, and print averages."""
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else []
    if again:
        drop = set(asked(only, forecaster))
        rows = [row for row in rows if (row["table"], row["forecaster"]) not in drop]
        save(out, body_of(rows))
    digests: dict[str, str] = {}
    for name, who in asked(only, forecaster):
        if name not in digests:
            print(f"{name}: {ENTRIES[name].hard}", flush=True)
            digests[name] = digest_of(name)
        digest = digests[name]
        old = [row for row in rows if (row["table"], row["forecaster"]) == (name, who)]
        if not digest or any(row["digest"] == digest for row in old):
            continue
        head = {"table": name, "hard": ENTRIES[name].hard, "forecaster": who, "digest": digest}
        row = head | measured(name, who, limit)
        rows = in_order([r for r in rows if r not in old] + [row])
        save(out, body_of(rows))
        print(told(row), flush=True)
    save(out, body_of(rows))
    print(printed(rows))


def digest_of(name: str) -> str:
    """Return what names the version of a table, or nothing where it is not there."""
    try:
        return ENTRIES[name].table().digest
    except FileNotFoundError as error:
        print(f"  skipped: {error}", flush=True)
        return ""


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in the order of tables and forecasters."""
    tables, who = list(ENTRIES), [TUNECAST, *PEERS]
    known = [r for r in rows if r["table"] in tables and r["forecaster"] in who]
    return sorted(known, key=lambda r: (tables.index(r["table"]), who.index(r["forecaster"])))


def told(row: dict[str, Any]) -> str:
    """Return a row as a line or a few."""
    took = f"{row['seconds']:6.1f} s {row['peak_mib']:5.0f} MiB"
    size = f"{row['train']:5} + {row['test']:3} rows" if "train" in row else ""
    size += f" {row['curves']:4} curves" if "curves" in row else ""
    head = f"  {row['forecaster']:36}{size} {took}"
    if row["outcome"] != DONE:
        return f"{head}  {row['outcome']}"
    notes = ""
    if "converged" in row:
        notes = "  converged" if row["converged"] else "  DID NOT CONVERGE"
    if row.get("fallback_rows"):
        notes += f"  {row['fallback_rows']} rows by something simpler"
    parts = [
        f"    {s['group']:16} n {s['n']:4}  cover50 {s['cover50']:.2f}  cover90 {s['cover90']:.2f}"
        f"  CRPS {s['crps']:.4f}  log score {s['log_score']:7.3f}"
        for s in row["scores"]
    ]
    return "\n".join([head + notes, *parts])


def body_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is saved."""
    common = done_by_all(rows)
    return {
        "command": "python " + " ".join(sys.argv),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "averages": averages(rows).to_dict(orient="index"),
        "averages_common": averages(rows, common).to_dict(orient="index"),
        "common": common,
        "winners": winners(rows).to_dict(orient="index"),
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zoo.json"))
    parser.add_argument("--only", default="", help="part of a table's name")
    parser.add_argument("--forecaster", default="", help="part of a forecaster's name, or 'peers'")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for a forecast")
    parser.add_argument("--again", action="store_true", help="forget what is asked for first")
    given = parser.parse_args()
    main(given.out, given.only, given.forecaster, given.limit, given.again)
