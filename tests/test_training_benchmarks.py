"""The benchmarks of training run, as toys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
importorskip("transformers")


@pytest.mark.slow
def test_the_gpu_benchmark_runs_as_a_toy(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    script = Path(__file__).parent.parent / "benchmarks" / "training_gpu.py"
    command = [sys.executable, str(script), "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--small"], capture_output=True, text=True, check=True
    )
    assert "no GPU: a toy on a CPU" in done.stdout
    found = json.loads(out.read_text())
    ways = {row["method"]: row["ways"] for row in found["results"]}
    assert set(ways["lora"]) == {"tunecast", "stack of 4", "peft", "trl"}
    assert set(ways["fmt"]) == {"tunecast", "stack of 4", "peft", "trl", "2 processes"}
    assert ways["lora"]["stack of 4"]["times_peft"] > 0
    refused = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert refused.returncode == 2
    assert refused.stderr == "there is no GPU here; --device cpu --small tries the script.\n"
