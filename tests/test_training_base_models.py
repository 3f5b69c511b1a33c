"""Base models: their sizes, what pre-training gives, and what the cache keeps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import importorskip

importorskip("torch")
importorskip("peft")
transformers = importorskip("transformers")

from tunecast.models.errors import TunecastError
from tunecast.training import pretraining
from tunecast.training.base_models import Hub, Pretraining, Rung
from tunecast.training.loading import Loaded, body_size, load_base
from tunecast.training.pretraining import document_tokens, rung_folder, token_stream
from tunecast.training.tasks import TaskSource, corpus


def test_the_size_leaves_embeddings_and_head_out(base: Loaded) -> None:
    assert base.total - base.size == 2 * 300 * 16
    tied = transformers.LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(tied)
    assert model.num_parameters() - body_size(model) == 50 * 8


# --------------------------------------------------------------------------- the ladder


@pytest.fixture(scope="session")
def plan(words_task: TaskSource) -> Pretraining:
    return Pretraining(
        family="test", corpus=words_task, tokens=4096, parts=(0.5, 1.0), vocabulary=300,
        context=64, block=16, batch=8,
    )  # fmt: skip


def test_a_rung_is_made_once_and_knows_its_size(
    plan: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung = Rung(pretraining=plan, layers=2, width=16, heads=2)
    steps: list[float] = []
    loaded = load_base(rung, tmp_path, steps.append)
    assert loaded.size == rung.size
    assert loaded.context == 64
    assert steps[-1] == 1
    assert len(steps) == 4096 // (16 * 8)
    monkeypatch.setattr(pretraining, "pretrain", lambda *_: pytest.fail("made a second time"))
    assert load_base(rung, tmp_path) is loaded

    half = rung_folder(replace(rung, part=0.5), tmp_path)
    note = json.loads((half / "pretraining.json").read_text())
    assert note["tokens"] == replace(rung, part=0.5).pretrain_tokens == 2048
    text = "red green blue"
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text


def test_pre_training_learns_and_can_be_repeated(plan: Pretraining, tmp_path: Path) -> None:
    rung = Rung(pretraining=replace(plan, parts=(0.25, 1.0)), layers=1, width=16, heads=2)
    early, late, again = (
        json.loads((rung_folder(replace(rung, part=part), cache) / "pretraining.json").read_text())
        for part, cache in ((0.25, tmp_path / "a"), (1.0, tmp_path / "a"), (1.0, tmp_path / "b"))
    )
    assert late["loss"] < early["loss"] < 6
    assert late == again


def test_other_text_makes_another_base_model(plan: Pretraining, tmp_path: Path) -> None:
    rows = [{"source": f"other {k}", "target": f"text {k}"} for k in range(300)]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = replace(plan, corpus=replace(plan.corpus, path=str(path)))
    folders = {
        rung_folder(Rung(pretraining=p, layers=1, width=16, heads=2), tmp_path).parent
        for p in (plan, plan, other, replace(plan, seed=1))
    }
    assert len(folders) == 3
    assert not any("other 1" in text for text in corpus(plan.corpus, tmp_path))


def test_all_sizes_see_the_same_tokens(plan: Pretraining, tmp_path: Path) -> None:
    tokenizer = load_base(Rung(pretraining=plan, layers=1, width=16, heads=2), tmp_path).tokenizer
    documents = document_tokens(["red green", "blue"], tokenizer)
    assert tokenizer.decode(documents) == "<bos>red green<eos><bos>blue<eos>"
    whole = document_tokens(corpus(plan.corpus, tmp_path), tokenizer)
    for tokens in (100, 3 * len(whole) + 7):
        stream = token_stream(replace(plan, tokens=tokens), tokenizer, tmp_path)
        assert len(stream) == tokens
        assert (stream == np.tile(whole, 4)[:tokens]).all()


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (Hub(name="gone", path="no/such", family="x"), "base model 'gone' cannot be loaded from"),
        ("part", "the checkpoint at 0.1 is not kept, only 0.5, 1; "),
        ("tokens", "100 tokens do not fill a step of 8 x 16 tokens."),
    ],
)
def test_a_base_model_that_cannot_be_had_is_said(
    base: Any, sentence: str, plan: Pretraining, tmp_path: Path
) -> None:
    rung = Rung(pretraining=plan, layers=1, width=16, heads=2)
    if base == "part":
        base = replace(rung, part=0.1)
    if base == "tokens":
        base = replace(rung, pretraining=replace(plan, tokens=100))
    with pytest.raises(TunecastError, match=sentence) as caught:
        load_base(base, tmp_path)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.glob("ladder/*") if path.is_dir()], "half a model is kept"
