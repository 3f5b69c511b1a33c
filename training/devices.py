"""The device: which there is, how it computes, its memory and its peak."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch


def best_device() -> str:
    """Return ``"cuda"`` where there is one, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str) -> Any:
    """Return the context of a forward pass: bfloat16 on a GPU, float32 elsewhere."""
    if device == "meta":  # shapes and no numbers
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


def threads(count: int) -> None:
    """Keep this process to some threads: two that contend are slower than one."""
    torch.set_num_threads(count)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def gpus_here() -> int:
    """Return how many GPUs this machine lets us see."""
    return torch.cuda.device_count()


def free_memory(device: str) -> int:
    """Return the bytes that a device has left."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Dense bfloat16 multiplications in FLOP a second, by NVIDIA's data sheets.
PEAKS: Mapping[str, float] = {
    "A100": 312e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: str) -> float | None:
    """Return the FLOP a second that a device could reach; None where no data sheet says it."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for model, peak in PEAKS.items() if model in name), None)
