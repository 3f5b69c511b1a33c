"""Methods: full fine-tuning, LoRA and prompt tuning, as PEFT configures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunecast.models.errors import TunecastError


@dataclass(frozen=True, slots=True)
class FMT:
    """Full-model tuning: every parameter is trained."""

    label = "fmt"

    @property
    def setting(self) -> int:
        """Nothing to set."""
        return 0

    def config(self) -> None:
        """There is no adapter."""
        return None


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adapters of every matrix of attention and feed-forward (arXiv:2106.09685).

    Parameters
    ----------
    rank : int
        Rank r of the update B A, scaled by ``alpha / rank``.
    alpha : int
        Numerator of the scale; fixed, so that ranks compare.
    """

    rank: int = 4
    alpha: int = 16
    label = "lora"

    def __post_init__(self) -> None:
        """Reject a rank below 1."""
        if self.rank < 1:
            raise TunecastError(f"the rank of LoRA must be at least 1, not {self.rank}.")

    @property
    def setting(self) -> int:
        """The rank."""
        return self.rank

    def config(self) -> Any:
        """Return PEFT's configuration."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",  # PEFT leaves the vocabulary head out of these
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt tuning: virtual tokens before the input (arXiv:2104.08691).

    Parameters
    ----------
    length : int
        Virtual tokens; they start as embeddings of tokens drawn from the vocabulary.
    """

    length: int = 16
    label = "prompt"

    def __post_init__(self) -> None:
        """Reject a length below 1."""
        if self.length < 1:
            raise TunecastError(f"the length of a prompt must be at least 1, not {self.length}.")

    @property
    def setting(self) -> int:
        """The length."""
        return self.length

    def config(self) -> Any:
        """Return PEFT's configuration."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.length,
            prompt_tuning_init="SAMPLE_VOCAB",
        )


type Method = FMT | LoRA | Prompt
