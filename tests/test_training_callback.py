"""The callback in trainers of others."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import importorskip

torch = importorskip("torch")
importorskip("peft")
transformers = importorskip("transformers")

from training_cases import METHODS

from tunecast.models.errors import TunecastError
from tunecast.models.runs import read_runs
from tunecast.training.callback import RunTableCallback
from tunecast.training.evaluate import evaluate
from tunecast.training.examples import Encoded, Example
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method
from tunecast.training.tuned import Tuned, attach

# Trainer and PEFT ask transformers for names that are to go; that is between them.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def rows(examples: tuple[Example, ...]) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": e.ids.tolist(),
            "labels": [-100] * (len(e.ids) - e.targets) + e.ids[len(e.ids) - e.targets :].tolist(),
        }
        for e in examples
    ]


def padded(items: list[dict[str, list[int]]]) -> dict[str, Any]:
    length = max(len(item["input_ids"]) for item in items)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([i[name] + [pad] * (length - len(i[name])) for i in items])
        for name, pad in fill.items()
    }
    lengths = torch.tensor([[len(i["input_ids"])] for i in items])
    return {**batch, "attention_mask": (torch.arange(length) < lengths).long()}


def adapted(base: Loaded, method: Method) -> Any:
    return attach(Loaded(copy.deepcopy(base.model), base.tokenizer, 0, 0, 64), method).model


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label)
def test_the_trainer_leaves_a_row(
    method: Method, base: Loaded, task: Encoded, tmp_path: Path
) -> None:
    model = adapted(base, method)
    test = [padded(rows(task.test)[:5]), padded(rows(task.test)[5:])]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", seed=5, learning_rate=1e-3,
        dataloader_pin_memory=False,
    )  # fmt: skip
    table = tmp_path / "runs.csv"
    callback = RunTableCallback(
        table, task="words", test=test, run_id="mine", base_model="small", pretrain_tokens=1e6,
        extra={"note": "by hand"},
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows(task.train[:24]), data_collator=padded,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    found = read_runs(table, columns=["model_size", "finetune_examples"]).iloc[0]
    assert (found["method"], found["seed"], found["finetune_examples"]) == (method.label, 5, 24)
    assert found["model_size"] == base.size
    assert found["train_flops"] > 0
    assert found["note"] == "by hand"
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found["pet_params"] == (0 if method.label == "fmt" else trainable)

    virtual = method.setting if method.label == "prompt" else 0
    loss, error = evaluate(Tuned(model, virtual), task.test, "cpu")
    assert found["loss"] == pytest.approx(loss, abs=1e-5)
    assert found["loss_se"] == pytest.approx(error, abs=1e-5)

    with pytest.raises(TunecastError, match="already has a run 'mine'"):
        trainer.train()


def test_a_trainer_that_diverged_leaves_a_row_too(
    base: Loaded, task: Encoded, tmp_path: Path
) -> None:
    model = adapted(base, FMT())
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    callback = RunTableCallback(
        tmp_path / "runs.csv", task="words", test=[padded(rows(task.test))], finetune_examples=7
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    transformers.Trainer(
        model, arguments, train_dataset=rows(task.train[:8]), data_collator=padded,
        callbacks=[callback],
    ).train()  # fmt: skip
    found = read_runs(tmp_path / "runs.csv").iloc[0]
    assert found["status"] == "diverged"
    assert found["finetune_examples"] == 7
    assert "nan" in found["reason"]


def test_trl_leaves_a_row(base: Loaded, task: Encoded, tmp_path: Path) -> None:
    trl = importorskip("trl")
    datasets = importorskip("datasets")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", bf16=False,
        dataloader_pin_memory=False, gradient_checkpointing=False,
    )  # fmt: skip
    texts = [{"prompt": f"red {k}", "completion": " green blue"} for k in range(20)]
    callback = RunTableCallback(
        tmp_path / "runs.csv", task="words", test=[padded(rows(task.test))], family="small"
    )
    trl.SFTTrainer(
        copy.deepcopy(base.model), arguments, train_dataset=datasets.Dataset.from_list(texts),
        processing_class=base.tokenizer, peft_config=LoRA(rank=2).config(), callbacks=[callback],
    ).train()  # fmt: skip
    found = read_runs(tmp_path / "runs.csv").iloc[0]
    assert (found["method"], found["finetune_examples"]) == ("lora", 20)
    assert found["model_size"] == base.size
    assert 3 < found["loss"] < 8
