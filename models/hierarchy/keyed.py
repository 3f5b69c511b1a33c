"""Random draws that belong to a name: whoever asks for a name gets the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Keyed:
    """Draws for everything that a forecast draws anew.

    Parameters
    ----------
    seed : int
        Where the randomness comes from, together with a name.
    size : int
        Number of draws.
    """

    seed: int
    size: int

    def rng(self, *key: object) -> np.random.Generator:
        """Return the generator that belongs to a name."""
        text = "\x1f".join(map(repr, (self.seed, *key))).encode()
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))

    def draws(self, df: float | None, *key: object, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Return standard draws, normal where ``df`` is None, else Student-t; (draws, *shape)."""
        rng, shape = self.rng(*key), (self.size, *shape)
        return rng.standard_normal(shape) if df is None else rng.standard_t(df, shape)
