"""Base models that a recipe can name: one of the hub, or a size of a ladder of our own.

A ladder is several sizes pre-trained on the same tokens in the same order, with one tokenizer, so
that their losses compare (`tunecast.training.pretraining`). `tunecast.training.loading` loads both.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunecast.training.tasks import TaskSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """A causal language model that transformers loads.

    Parameters
    ----------
    name : str
        The ``base_model`` column.
    path : str
        Hub id or folder.
    family : str
        Models whose losses compare, because they share a tokenizer.
    pretrain_tokens : float or None
        What the model has seen, if it is known.
    """

    name: str
    path: str
    family: str
    pretrain_tokens: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """What all sizes of a ladder have in common.

    Parameters
    ----------
    family : str
        The ``family`` column.
    corpus : TaskSource
        Whose text is learned; see `tunecast.training.tasks.corpus`.
    languages : tuple of str
        Of the debian tasks; empty takes all.
    tokens : int
        Seen by every size alike, whatever it costs.
    parts : tuple of float
        Shares of ``tokens`` after which a checkpoint is kept, the last one 1.
    vocabulary : int
        Entries of the tokenizer (byte-level BPE), special ones included.
    context : int
        Longest input in tokens, virtual ones included.
    block, batch : int
        Tokens of a training sequence and sequences of a step.
    rate : float
        Peak learning rate at width 64; it falls as 1 / width.
    seed : int
        Of the initial weights and of the order.
    """

    family: str
    corpus: TaskSource
    languages: tuple[str, ...] = ()
    tokens: int
    parts: tuple[float, ...] = (1.0,)
    vocabulary: int = 4096
    context: int = 256
    block: int = 128
    batch: int = 16
    rate: float = 4e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One size of a ladder at one of its checkpoints.

    The shapes follow arXiv:2402.17193, Table 3: a width in fixed proportion to the depth, a
    feed-forward part of four widths, and all heads sharing one key and value.

    Parameters
    ----------
    pretraining : Pretraining
        What the sizes have in common.
    layers, width, heads : int
        Depth, model dimension, attention heads; a head has ``width / heads`` dimensions.
    part : float
        The checkpoint, one of ``pretraining.parts``.
    """

    pretraining: Pretraining
    layers: int
    width: int
    heads: int
    part: float = 1.0

    @property
    def size(self) -> int:
        """Parameters, token embeddings not counted.

        Of a layer: queries and output, one key and value head, three feed-forward matrices, two
        norms; and one norm at the end.
        """
        d, head = self.width, self.width // self.heads
        layer = 2 * d * d + 2 * d * head + 3 * d * 4 * d + 2 * d
        return self.layers * layer + d

    @property
    def family(self) -> str:
        """The ``family`` column."""
        return self.pretraining.family

    @property
    def name(self) -> str:
        """The ``base_model`` column."""
        part = "" if self.part == 1 else f"-{self.part:g}"
        return f"{self.family}-{self.size / 1e6:.3g}m{part}"

    @property
    def pretrain_tokens(self) -> float:
        """Tokens seen at this checkpoint."""
        return float(self.pretraining.tokens * self.part)


type BaseModel = Hub | Rung
