"""Scores of generated text beside the loss: chrF, BLEU and ROUGE-L, each from its own library."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from tunecast.models.errors import TunecastError
from tunecast.training.examples import Encoded
from tunecast.training.hugging_face import quiet
from tunecast.training.tuned import Tuned

GENERATION_BATCH = 32


def generate(tuned: Tuned, task: Encoded, tokenizer: Any, count: int, device: str) -> list[str]:
    """Return the greedy continuations of the first ``count`` test sources.

    Sources of one length go together, so that none needs padding on the left. A text ends at its
    mark or at the length of the longest target.

    Parameters
    ----------
    tuned, task, tokenizer, count, device
        As in `scores`.
    """
    examples = task.test[:count]
    most = max(example.targets for example in task.test)
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(len(example.ids) - example.targets, []).append(index)
    texts = [""] * len(examples)
    tuned.model.eval()
    for length, members in sorted(groups.items()):
        for start in range(0, len(members), GENERATION_BATCH):
            part = members[start : start + GENERATION_BATCH]
            rows = [examples[k].ids[:length].tolist() for k in part]
            ids = torch.tensor(rows, dtype=torch.int64, device=device)
            with quiet(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # advice of transformers, for each call anew
                # The prompt is put in front here: PEFT asks for the cache of earlier tokens by a
                # name that transformers 5.24 changed, and would prompt anew before every token.
                given = (
                    {"inputs_embeds": tuned.prompted(ids)} if tuned.virtual else {"input_ids": ids}
                )
                made = tuned.inner.generate(
                    **given,
                    attention_mask=ids.new_ones(len(ids), tuned.virtual + length),
                    max_new_tokens=most,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.eos_token_id,
                )
            begin = 0 if tuned.virtual else length  # of embeddings only what follows comes back
            for index, row in zip(part, made[:, begin:], strict=True):
                texts[index] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return texts


def scores(
    tuned: Tuned, task: Encoded, tokenizer: Any, count: int, device: str
) -> dict[str, object]:
    """Return the columns ``chrf``, ``bleu`` and ``rouge_l``, all from 0 to 100.

    Parameters
    ----------
    tuned, task, tokenizer : Tuned, Encoded, transformers.PreTrainedTokenizerBase
        What generates, and from what.
    count : int
        Test examples, the first ones.
    device : str
        Where the model is.

    Raises
    ------
    TunecastError
        If sacrebleu or rouge-score is not installed.
    """
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise TunecastError(
            f"scores of generated text need {error.name}; install tunecast[train]."
        ) from error
    texts = generate(tuned, task, tokenizer, count, device)
    wanted = [target for _, target in task.test_pairs[:count]]
    rouge = RougeScorer(["rougeL"])
    found = [rouge.score(a, b)["rougeL"].fmeasure for a, b in zip(wanted, texts, strict=True)]
    return {
        "chrf": sacrebleu.corpus_chrf(texts, [wanted]).score,
        "bleu": sacrebleu.corpus_bleu(texts, [wanted]).score,
        "rouge_l": 100 * sum(found) / len(found),
        "generated": len(texts),
    }
