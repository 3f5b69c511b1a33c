"""Base models: any causal language model of the hub, or a ladder of our own, made from scratch.

A ladder is several sizes pre-trained on the same tokens in the same order, with one tokenizer, so
that their losses compare. What was trained once is kept in the cache under a hash of everything it
came from: text, shape, seed and settings.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked
from tunecast.training.tasks import TaskSource, corpus, digest_of

SPECIAL = ("<pad>", "<bos>", "<sep>", "<eos>")
# Raised whenever a change of the code changes what pre-training gives.
RECIPE_VERSION = 1


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


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A base model in memory.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        On the CPU, in float32.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    size : int
        Parameters without token embeddings and without the vocabulary head.
    total : int
        All parameters.
    context : int
        Longest input in tokens.
    """

    model: Any
    tokenizer: Any
    size: int
    total: int
    context: int


def load_base(
    base: BaseModel, cache: Path, progress: Callable[[float], None] | None = None
) -> Loaded:
    """Load a base model, pre-training it first if it is a rung that the cache does not hold.

    Parameters
    ----------
    base : Hub or Rung
        What to load.
    cache : Path
        Folder of what has been trained.
    progress : callable, optional
        Called with the share of pre-training that is done.

    Raises
    ------
    TunecastError
        If transformers cannot load it, in one sentence.
    """
    if isinstance(base, Rung):
        return _load(str(rung_folder(base, cache, progress)), base.name)
    return _load(base.path, base.name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and the advice of transformers to themselves."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@lru_cache(maxsize=2)
def _load(path: str, name: str) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(path, name, error) from error
    context = getattr(model.config, "max_position_embeddings", None) or 10**9
    return Loaded(model, tokenizer, body_size(model), model.num_parameters(), int(context))


@lru_cache
def outline(path: str, name: str) -> Any:
    """Return a model from its configuration alone, on the device ``meta``: shapes and no numbers.

    Raises
    ------
    TunecastError
        If transformers has no configuration there, in one sentence.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(path, name, error) from error


def _unloadable(path: str, name: str, error: Exception) -> TunecastError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return TunecastError(f"base model '{name}' cannot be loaded from '{path}': {reason}.")


def body_size(model: Any) -> int:
    """Return the parameters of a model without its token embeddings and vocabulary head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    left_out = {id(p) for end in ends if end is not None for p in end.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in left_out)


# --------------------------------------------------------------------------- the tokenizer


@lru_cache(maxsize=8)  # the text need not be hashed for every run
def tokenizer_folder(pretraining: Pretraining, cache: Path) -> Path:
    """Train the ladder's tokenizer, or find it in the cache."""
    for carried in (tokens_folder(pretraining, cache) / "tokenizer").glob("*"):
        return carried
    texts = corpus(pretraining.corpus, cache, pretraining.languages)
    folder = cache / "tokenizers" / digest_of([*texts, str(pretraining.vocabulary)])[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not folder.exists():
            _save(folder, _train_tokenizer(texts, pretraining.vocabulary).save_pretrained)
    return folder


def tokens_folder(pretraining: Pretraining, cache: Path) -> Path:
    """Return where the tokens of a ladder are, if they were carried here (see `offline`)."""
    facts = (pretraining.corpus, pretraining.languages, pretraining.vocabulary)
    return cache / "tokens" / digest_of([repr(facts)])[:16]


def _train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    pad, bos, sep, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token=bos, sep_token=sep, eos_token=eos
    )


def _save(folder: Path, save: Callable[[str], object]) -> None:
    """Write a folder that is either complete or absent."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        save(str(temporary))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# --------------------------------------------------------------------------- pre-training


def rung_folder(rung: Rung, cache: Path, progress: Callable[[float], None] | None = None) -> Path:
    """Pre-train a rung, all its checkpoints in one go, or find it in the cache."""
    tokenizer = tokenizer_folder(rung.pretraining, cache)
    if rung.part not in rung.pretraining.parts or max(rung.pretraining.parts) != 1:
        kept = ", ".join(f"{part:g}" for part in rung.pretraining.parts)
        raise TunecastError(
            f"the checkpoint at {rung.part:g} is not kept, only {kept}; the last one must be 1."
        )
    facts = {
        **{key: value for key, value in asdict(rung).items() if key != "part"},
        "tokenizer": tokenizer.name,
        "version": RECIPE_VERSION,
    }
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    home = cache / "ladder" / identity
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home):
        if not home.exists():
            _save(home, lambda folder: _pretrain(rung, cache, tokenizer, Path(folder), progress))
    return home / f"{rung.part:g}"


def document_tokens(texts: Iterable[str], tokenizer: Any, most: float = math.inf) -> np.ndarray:
    """Return documents one after the other, each between its two marks, about ``most`` tokens."""
    pieces: list[list[int]] = []
    count = 0
    for part in batched(texts, 1000):
        for ids in tokenizer(list(part), add_special_tokens=False).input_ids:
            pieces.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
            count += len(ids) + 2
        if count >= most:
            break
    return np.concatenate([np.asarray(piece, dtype=np.int32) for piece in pieces])


def token_stream(pretraining: Pretraining, tokenizer: Any, cache: Path) -> np.ndarray:
    """Return what a ladder learns: its documents, over and over until there are enough tokens."""
    carried = tokens_folder(pretraining, cache) / "documents.npy"
    if carried.exists():
        documents = np.load(carried)
    else:
        texts = corpus(pretraining.corpus, cache, pretraining.languages)
        documents = document_tokens(texts, tokenizer, pretraining.tokens)
    return np.resize(documents, pretraining.tokens)


def _pretrain(
    rung: Rung,
    cache: Path,
    tokenizer_at: Path,
    folder: Path,
    progress: Callable[[float], None] | None,
) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    plan = rung.pretraining
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_at)
    stream = token_stream(plan, tokenizer, cache)
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=rung.width,
        intermediate_size=4 * rung.width,
        num_hidden_layers=rung.layers,
        num_attention_heads=rung.heads,
        num_key_value_heads=1,
        max_position_embeddings=plan.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    device = best_device()
    model: Any = without_mask(LlamaForCausalLM(config).train().to(device))
    blocks = torch.from_numpy(stream[: len(stream) // plan.block * plan.block].astype(np.int64))
    blocks = blocks.view(-1, plan.block).to(device)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(plan.seed))
    order = order.to(device)
    steps = len(blocks) // plan.batch
    if steps == 0:
        raise TunecastError(
            f"{plan.tokens} tokens do not fill a step of {plan.batch} x {plan.block} tokens."
        )
    peak = plan.rate * 64 / rung.width
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    saves = {max(1, round(steps * part)): part for part in plan.parts}
    for step in range(1, steps + 1):
        batch = blocks[order[(step - 1) * plan.batch : step * plan.batch]]
        with autocast(device):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * cosine(step - 1, steps, warm_up=0.02, floor=0.1)
        optimizer.step()
        if step in saves:
            at = folder / f"{saves[step]:g}"
            with quiet(), warnings.catch_warnings():
                model.save_pretrained(at)
                tokenizer.save_pretrained(at)
            note = {"step": step, "tokens": step * plan.batch * plan.block, "loss": loss.item()}
            (at / "pretraining.json").write_text(json.dumps(note))
        if progress is not None:
            progress(step / steps)
    if not math.isfinite(loss.item()):
        raise TunecastError(f"pre-training of '{rung.name}' diverged; lower its rate.")


# --------------------------------------------------------------------------- shared with runs


# The name under which transformers finds fused attention without a mask.
MASKLESS = "tunecast_maskless"


def without_mask(model: Any) -> Any:
    """Let a model's attention do without a mask where causality is all that it would say.

    With its own way of making masks transformers looks into a tensor in every pass, for which the
    host waits. Models with sliding windows keep it, and those whose attention is not fused.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None or kinds != {"full_attention"}
    if model._supports_attention_backend and config._attn_implementation == "sdpa" and not windowed:
        AttentionInterface.register(MASKLESS, sdpa_attention_forward)
        model.set_attn_implementation(MASKLESS)
    return model


def best_device() -> str:
    """Return ``"cuda"`` where there is one, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str) -> Any:
    """Return the context of a forward pass: bfloat16 on a GPU, float32 elsewhere."""
    import torch

    if device == "meta":  # shapes and no numbers
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


def cosine(step: int, steps: int, *, warm_up: float, floor: float = 0.0) -> float:
    """Return the share of the peak learning rate at ``step``, counted from 0.

    It rises linearly over the first ``warm_up`` (a share of ``steps``) and falls to ``floor``
    along half a cosine.
    """
    warm = max(1, math.ceil(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))
