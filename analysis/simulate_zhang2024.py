"""Which runs might Zhang et al. 2024 have seen? Draws the embedded table zhang2024-simulated.

python analysis/simulate_zhang2024.py    (a second; replaces models/data/zhang2024-simulated.csv)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tunecast.models.files import write_atomically
from tunecast.models.laws.simulate import simulate

SEED = 2402_17193  # the number of the paper
TABLE = Path(__file__).parent.parent / "models" / "data" / "zhang2024-simulated.csv"


def main(out: Path = TABLE, *, seed: int = SEED) -> None:
    """Draw the table and replace ``out`` by it."""
    frame = simulate(np.random.default_rng(seed))
    sizes = {"model_size": "int64", "finetune_examples": "int64"}
    write_atomically(out, lambda path: frame.astype(sizes).to_csv(path, index=False))


if __name__ == "__main__":
    main()
