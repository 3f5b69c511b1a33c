"""A ladder, made from scratch: its tokenizer and the pre-training of its sizes.

What was trained once is kept in the cache under a hash of everything it came from: text, shape,
seed and settings.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunecast.models.errors import TunecastError
from tunecast.models.files import locked
from tunecast.training.base_models import Pretraining, Rung
from tunecast.training.budget import cosine
from tunecast.training.devices import autocast, best_device
from tunecast.training.hugging_face import quiet, without_mask
from tunecast.training.splits import digest_of
from tunecast.training.tasks import corpus

SPECIAL = ("<pad>", "<bos>", "<sep>", "<eos>")
# Raised whenever a change of the code changes what pre-training gives.
RECIPE_VERSION = 1


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
            _save(folder, train_tokenizer(texts, pretraining.vocabulary).save_pretrained)
    return folder


def tokens_folder(pretraining: Pretraining, cache: Path) -> Path:
    """Return where the tokens of a ladder are, if `tunecast.training.offline` carried them here."""
    facts = (pretraining.corpus, pretraining.languages, pretraining.vocabulary)
    return cache / "tokens" / digest_of([repr(facts)])[:16]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Return a tokenizer of byte-level BPE with so many entries, trained on some texts."""
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
    """Pre-train a rung, all its checkpoints in one go, or find it in the cache.

    Parameters
    ----------
    rung : Rung
        A size of a ladder at a checkpoint that is kept.
    cache : Path
        Where text, tokenizer and models are.
    progress : callable, optional
        Called with the share of pre-training that is done.

    Returns
    -------
    Path
        The folder of the checkpoint, with its tokenizer.

    Raises
    ------
    TunecastError
        If the checkpoint is not kept, or it cannot be trained.
    """
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
            _save(home, lambda folder: pretrain(rung, cache, tokenizer, Path(folder), progress))
    return home / f"{rung.part:g}"


def document_tokens(texts: Iterable[str], tokenizer: Any, most: float = math.inf) -> np.ndarray:
    """Return documents one after the other, each between its two marks.

    Parameters
    ----------
    texts : iterable of str
        The documents.
    tokenizer : transformers.PreTrainedTokenizerBase
        With a mark for the beginning of a text and one for its end.
    most : float
        About how many tokens suffice.

    Returns
    -------
    ndarray of int32, shape (tokens,)
        Whole documents alone.
    """
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


def pretrain(
    rung: Rung,
    cache: Path,
    tokenizer_at: Path,
    folder: Path,
    progress: Callable[[float], None] | None,
) -> None:
    """Pre-train a rung from random weights and save its checkpoints.

    Parameters
    ----------
    rung : Rung
        Which size of which ladder; all its checkpoints are saved.
    cache : Path
        Where the text is.
    tokenizer_at : Path
        Folder of the tokenizer.
    folder : Path
        Gets a folder for each checkpoint, named after its share of the tokens.
    progress : callable or None
        Called with the share that is done.

    Raises
    ------
    TunecastError
        If the tokens do not fill a step, or the loss becomes infinite.
    """
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
