"""Alignment of a mixture of experts that was pre-trained with a capacity: nothing is dropped in it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from gristmill.align import dpo as dpo_room
from gristmill.align import sft as sft_room
from gristmill.align.config import DPOConfig, SFTConfig
from gristmill.align.dpo import _reference
from gristmill.artifact import StageRun
from gristmill.events import StageLog
from gristmill.model.config import Experts, ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.experts import experts_of, router_losses
from gristmill.train.config import TrainingConfig

TRAINING = TrainingConfig(
    steps=2, batch_size=4, micro_batch_size=2, learning_rate=1e-3, precision="fp32", device="cpu", log_every=1
)


class Letters:
    """A tokenizer of characters, with the methods that alignment needs."""

    pad_id = 0

    def chat_ids_with_mask(self, messages):
        prompt, reply = ([1 + ord(c) % 90 for c in message["content"]] for message in messages)
        return prompt + reply, [0] * len(prompt) + [1] * len(reply)


def model() -> Decoder:
    experts = Experts(num_experts=4, top_k=2, intermediate_size=8, capacity_factor=0.5)
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    sizes = {"vocab_size": 96, "intermediate_size": 24, "max_seq_len": 128}
    made = Decoder(ModelConfig(**shape, **sizes, experts=experts)).init_weights(0)
    with torch.no_grad():  # an untrained model's experts hardly show in what it says
        for parameter in made.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return made


@pytest.fixture
def run(tmp_path, monkeypatch):
    for room in (dpo_room, sft_room):
        monkeypatch.setattr(room, "load_model", lambda _: model().eval())
        monkeypatch.setattr(room, "save_model", lambda *_: None)
        monkeypatch.setattr(room, "heldout_accuracy", lambda *_: 0.5)
        monkeypatch.setattr(room, "Tokenizer", SimpleNamespace(load=lambda _: Letters()))
    (tmp_path / "scratch").mkdir()
    return StageRun(tmp_path, tmp_path / "scratch", {"sft": tmp_path, "base": tmp_path}, 1, StageLog.silent())


def test_policy_and_reference_agree_before_the_first_step_of_dpo(run):
    pairs = [{"prompt": f"What is {n}?", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(4)]
    (run.out / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (run.scratch / "sampled.json").write_text("0.5")
    dpo_room.dpo(DPOConfig(prompts=4, beta=1.0, training=TRAINING, accuracy_tasks=1), run)
    first, second = json.loads((run.out / "training.json").read_text())
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert first["dropped_assignments"] == 0
    assert second["loss"] < first["loss"]


def test_sft_drops_nothing(run):
    sft_room.sft(SFTConfig(tasks=8, training=TRAINING, accuracy_tasks=1), run)
    assert [entry["dropped_assignments"] for entry in json.loads((run.out / "training.json").read_text())] == [0, 0]


def test_the_reference_leaves_no_mark_and_drops_nothing_in_either_mode():
    examples = [([5, 6, 7, 8, 9][:length], [0, 1, 1, 1, 1][:length]) for length in (5, 3, 4, 2)]
    found = []
    for training in (False, True):
        policy = model().train(training)
        found.append(_reference(policy, examples, 0, TRAINING))
        router_losses(policy)
        assert all(layer.padding is None and layer.drops for layer in experts_of(policy))
    torch.testing.assert_close(found[0], found[1])
