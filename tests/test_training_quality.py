"""The scores of generated text."""

import numpy as np
import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
importorskip("transformers")

from training_cases import METHODS

from tunecast.models.errors import TunecastError
from tunecast.training.budget import Budget
from tunecast.training.examples import Encoded
from tunecast.training.loading import Loaded
from tunecast.training.loop import train
from tunecast.training.methods import FMT, Method
from tunecast.training.quality import generate, scores
from tunecast.training.tuned import attach

# Trainer and PEFT ask transformers for names that are to go; that is between them.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_a_greedy_continuation_takes_the_likeliest_token(
    method: Method, base: Loaded, task: Encoded
) -> None:
    tuned = attach(base, method)
    text = generate(tuned, task, base.tokenizer, 4, "cpu")
    most = max(e.targets for e in task.test)
    for example, made in zip(task.test[:4], text, strict=True):
        ids = example.ids[: len(example.ids) - example.targets].astype(np.int64).tolist()
        begin = len(ids)
        while len(ids) < begin + most:
            logits = tuned.logits(torch.tensor([ids]), torch.tensor([len(ids) - 1]))
            ids.append(int(logits.argmax()))
            if ids[-1] == base.tokenizer.eos_token_id:
                break
        assert made == base.tokenizer.decode(ids[begin:], skip_special_tokens=True).strip()


def test_a_model_that_learned_scores_better(base: Loaded, task: Encoded) -> None:
    importorskip("sacrebleu")
    importorskip("rouge_score")
    tuned = attach(base, FMT())
    before = scores(tuned, task, base.tokenizer, 12, "cpu")
    train(tuned, task.train[:300], task.dev, Budget(epochs=6), rate=1e-2, seed=0)
    after = scores(tuned, task, base.tokenizer, 12, "cpu")
    assert set(after) == {"chrf", "bleu", "rouge_l", "generated"}
    for name in ("chrf", "rouge_l"):
        assert float(str(before[name])) + 5 < float(str(after[name])) <= 100
    assert after["generated"] == 12


def test_scores_without_their_libraries_are_refused(
    base: Loaded, task: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(TunecastError, match=r"need sacrebleu; install tunecast\[train\]"):
        scores(attach(base, FMT()), task, base.tokenizer, 1, "cpu")
