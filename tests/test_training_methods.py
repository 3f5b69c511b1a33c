"""Methods: what is trained, how it starts, and how it is saved."""

from pathlib import Path
from typing import Any

import pytest
from conftest import importorskip

torch = importorskip("torch")
peft = importorskip("peft")
transformers = importorskip("transformers")

from tunecast.models.errors import TunecastError
from tunecast.training.loading import Loaded
from tunecast.training.methods import FMT, LoRA, Method, Prompt
from tunecast.training.tuned import attach

# Two layers of width 16: queries and output 16 x 16, one key and value head 16 x 8, feed-forward
# 16 x 32 three times. LoRA adds rank * (rows + columns) to each.
LORA_OF_RANK_1 = 2 * ((16 + 16) * 2 + (16 + 8) * 2 + (16 + 32) * 3)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (FMT(), 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16) + 16 + 2 * 300 * 16),
        (LoRA(rank=1), LORA_OF_RANK_1),
        (LoRA(rank=5), 5 * LORA_OF_RANK_1),
        (Prompt(length=7), 7 * 16),
    ],
    ids=str,
)
def test_the_trainable_parameters_are_these_and_no_others(
    base: Loaded, method: Method, count: int
) -> None:
    tuned = attach(base, method)
    assert sum(p.numel() for p in tuned.trainable.values()) == count
    assert not any("lm_head" in name for name in tuned.trainable if method.label != "fmt")
    if isinstance(method, LoRA):
        touched = {name.split(".")[-4] for name in tuned.trainable}
        attention, forward = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj"}
        assert touched == attention | forward | {"down_proj"}


def test_a_prompt_starts_as_words_of_the_vocabulary(base: Loaded) -> None:
    tuned, again, other = (attach(base, Prompt(5), seed=seed) for seed in (0, 0, 1))
    (prompt,), (same,), (another,) = (t.trainable.values() for t in (tuned, again, other))
    vocabulary = base.model.get_input_embeddings().weight
    assert all((row == vocabulary).all(1).any() for row in prompt)
    assert torch.equal(prompt, same)
    assert not torch.equal(prompt, another)


def test_lora_starts_as_the_base_model(base: Loaded) -> None:
    ids = torch.arange(4, 20).view(2, 8)
    where = torch.arange(16)
    assert torch.allclose(
        attach(base, LoRA()).logits(ids, where), attach(base, FMT()).logits(ids, where), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", [LoRA(rank=2), Prompt(length=3)], ids=lambda m: m.label)
def test_peft_reloads_what_was_saved(base: Loaded, method: Method, tmp_path: Path) -> None:
    tuned = attach(base, method)
    with torch.no_grad():
        for parameter in tuned.trainable.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tuned.save(tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names

    fresh = transformers.AutoModelForCausalLM.from_pretrained(base.model.name_or_path)
    theirs = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    ids = torch.arange(4, 20).view(2, 8)
    found = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, tuned.virtual :]
    ours = tuned.logits(ids, torch.arange(16)).view(2, 8, -1)
    assert torch.allclose(found, ours, atol=1e-5)


@pytest.mark.parametrize(("make", "word"), [(LoRA, "rank"), (Prompt, "length")])
def test_settings_below_one_are_refused(make: Any, word: str) -> None:
    with pytest.raises(TunecastError, match=f"the {word} .* must be at least 1, not 0"):
        make(0)
