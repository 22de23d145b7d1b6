"""Stage `sft`: supervised fine-tuning. The base model learns the chat turns and the tasks from worked examples."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..artifact import Figures, StageRun, write_json, write_text
from ..evaluate.tasks import Task, make_tasks
from ..model.decoder import Decoder
from ..model.experts import dropless
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer, check_same
from ..train.data import WHOLE, ConversationBatches, PretrainBatches, Shard, TokenBatch, check_lengths
from ..train.loop import train
from ..train.memory import Rows
from ..train.objectives import next_token_loss
from ..weights.hf import save_model
from ..weights.load import load_model
from .config import SFTConfig
from .rollout import heldout_accuracy


@dataclass(frozen=True)
class Mixed:
    """Batches of different lengths that one step learns from together."""

    parts: tuple[TokenBatch, ...]

    def split(self, size: int | None) -> list[TokenBatch]:
        """Micro-batches of at most `size` rows of one part."""
        return [micro for part in self.parts for micro in part.split(size)]


def sft(config: SFTConfig, run: StageRun) -> Figures:
    """Fine-tune `run.inputs["base"]`; leaves a model directory, `dataset.jsonl` and `training.json`."""
    tokenizer = Tokenizer.load(run.inputs["base"])
    model = load_model(run.inputs["base"])
    tasks = make_tasks(config.tasks, run.seed, "train")
    write_text(run.out / "dataset.jsonl", "".join(json.dumps(row) + "\n" for row in map(_row, tasks)))
    examples = [tokenizer.chat_ids_with_mask(_conversation(task)) for task in tasks]
    check_lengths(examples, model.config.max_seq_len)
    before = heldout_accuracy(model, tokenizer, config.accuracy_tasks, run.seed, config.max_answer_tokens)
    batches = ConversationBatches(examples, config.training.batch_size, tokenizer.pad_id, run.seed)
    replay = _replay_batches(config, run, model, tokenizer)

    longest = max(len(ids) for ids, _ in examples) - 1
    rows = [Rows(config.training.batch_size, longest)]
    if replay is not None:
        rows.append(Rows(config.replay_sequences, replay.sequence_length))

    def batch_at(step: int, shard: Shard = WHOLE) -> Mixed:
        conversations = batches(step, shard)
        if replay is None:
            return Mixed((conversations,))
        return Mixed((conversations, _weighted(replay(step, shard), batches.weight(step), config)))

    with dropless(model):  # no answer is to be learned without an expert that it is given with
        loss = partial(next_token_loss, z_loss=config.training.z_loss)
        result = train(model, batch_at, loss, config.training, run, sequence_length=longest, rows=rows)
    if result.model is None:  # not the main process, which writes it
        return {}
    model = result.model.to("cpu")
    after = heldout_accuracy(model, tokenizer, config.accuracy_tasks, run.seed, config.max_answer_tokens)
    save_model(model, run.out, run.inputs["base"])
    write_json(run.out / "training.json", result.history)
    return {
        "tasks": len(tasks),
        "epochs": round(config.training.steps / batches.batches_per_epoch, 3),
        "train_loss": result.history[-1]["loss"],
        "accuracy_before": round(before, 4),
        "accuracy_after": round(after, 4),
        "accuracy_tasks": config.accuracy_tasks,
        "steps_per_second": round(result.steps_run / max(result.seconds, 1e-9), 2),
        **result.figures,
    }


def _replay_batches(config: SFTConfig, run: StageRun, model: Decoder, tokenizer: Tokenizer) -> PretrainBatches | None:
    """Pre-training text to mix in, drawn as pre-training draws it but from another seed."""
    if not config.replay_sequences:
        return None
    store = TokenStore.open(run.inputs["tokens"])
    check_same(tokenizer, store.tokenizer_hash, str(run.inputs["tokens"]))
    return PretrainBatches(
        store,
        config.replay_sequences,
        model.config.max_seq_len,
        run.seed + 1,
        document_mask=False,
        bos_id=tokenizer.bos_id,
    )


def _weighted(replay: TokenBatch, conversations: float, config: SFTConfig) -> TokenBatch:
    """A process's share of the replayed text with weights that give all of it `replay_weight` of the step's whole
    weight, where that of the conversations is `conversations`."""
    share = config.replay_weight / (1 - config.replay_weight)
    places = config.replay_sequences * replay.weights_BT.shape[1]
    weight = share * conversations / places
    return replace(replay, weights_BT=torch.full_like(replay.weights_BT, weight))


def _conversation(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]


def _row(task: Task) -> dict[str, object]:
    provenance = {"source": "gristmill.evaluate.tasks", "family": task.family, "generation": 0}
    return {"id": task.id, "prompt": task.prompt, "messages": _conversation(task), "provenance": provenance}
