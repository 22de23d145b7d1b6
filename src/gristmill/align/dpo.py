"""Stage `dpo`: direct preference optimization (Rafailov et al. 2023) on pairs from the model's own answers.

The SFT model answers training prompts several times; a prompt with a right and a wrong answer gives one pair. The
reference log-probabilities are those of the SFT model and are computed once, since the pairs do not change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..artifact import Figures, StageRun, write_json, write_text
from ..errors import GristmillError
from ..evaluate.tasks import Task, is_correct, make_tasks
from ..model.autocast import autocast_dtype
from ..model.decoder import Decoder
from ..model.experts import dropless, mark_padding
from ..tokenizer.tokenizer import Tokenizer
from ..train.config import TrainingConfig
from ..train.data import WHOLE, Shard, TokenBatch, check_lengths, epoch_indices, pad_examples
from ..train.device import resolve_device
from ..train.logprobs import target_logprobs
from ..train.loop import train
from ..train.memory import Rows
from ..train.objectives import behind_last_target, on_device
from ..train.parallel.processes import current_processes
from ..train.precision import autocast, resolve_precision
from ..train.varlen import attention_specs, training_attention
from ..weights.hf import save_model
from ..weights.load import load_model
from .config import DPOConfig
from .losses import dpo_loss, sequence_logprobs
from .rollout import heldout_accuracy, sample_answers

Pair = dict[str, str]


@dataclass(frozen=True)
class PairBatch:
    """Chosen rows, then as many rejected rows, and the reference's log-probability of each row's reply."""

    rows: TokenBatch
    reference: Tensor

    @property
    def weight(self) -> float:
        """The number of pairs: each has one loss."""
        return len(self.reference) / 2

    @property
    def tokens(self) -> int:
        """Input places, padding counted."""
        return self.rows.tokens

    def split(self, size: int | None) -> list[PairBatch]:
        """Micro-batches of at most `size` pairs; None keeps the batch whole."""
        pairs = len(self.reference) // 2
        if size is None or size >= pairs:
            return [self]
        parts = []
        for first in torch.arange(pairs).split(size):
            rows = torch.cat([first, first + pairs])
            inputs, targets, weights = self.rows.inputs_BT, self.rows.targets_BT, self.rows.weights_BT
            parts.append(PairBatch(TokenBatch(inputs[rows], targets[rows], weights[rows]), self.reference[rows]))
        return parts


def dpo(config: DPOConfig, run: StageRun) -> Figures:
    """Align `run.inputs["sft"]`; leaves a model directory, `pairs.jsonl` and `training.json`."""
    tokenizer = Tokenizer.load(run.inputs["sft"])
    model = load_model(run.inputs["sft"])
    processes = current_processes()
    found = _pairs(config, run, model, tokenizer) if processes.main else None
    pairs, right = processes.broadcast_object(found)
    batch_size = config.training.batch_size
    if len(pairs) < batch_size:
        raise GristmillError(
            f"only {len(pairs)} of {config.prompts} prompts gave both a right and a wrong answer, fewer than one batch "
            f"of {batch_size}: raise dpo.prompts or dpo.samples_per_prompt, or lower dpo.training.batch_size"
        )
    before = heldout_accuracy(model, tokenizer, config.accuracy_tasks, run.seed, config.max_answer_tokens)
    chosen = [_example(tokenizer, pair["prompt"], pair["chosen"]) for pair in pairs]
    rejected = [_example(tokenizer, pair["prompt"], pair["rejected"]) for pair in pairs]
    check_lengths(chosen + rejected, model.config.max_seq_len)
    reference = _reference(model, chosen + rejected, tokenizer.pad_id, config.training).view(2, -1)

    longest = max(len(ids) for ids, _ in chosen + rejected) - 1
    rows = [Rows(batch_size, longest, rows_per_item=2)]

    def batch_at(step: int, shard: Shard = WHOLE) -> PairBatch:
        picked = epoch_indices(len(pairs), batch_size, step, run.seed, shard)
        rows = [chosen[i] for i in picked] + [rejected[i] for i in picked]
        return PairBatch(pad_examples(rows, tokenizer.pad_id), reference[:, picked].flatten())

    loss = partial(_loss, beta=config.beta)
    with dropless(model):  # as the reference was made: what skips an expert depends on the batch
        result = train(model, batch_at, loss, config.training, run, sequence_length=longest, rows=rows)
    if result.model is None:  # not the main process, which writes it
        return {}
    model = result.model.to("cpu")
    after = heldout_accuracy(model, tokenizer, config.accuracy_tasks, run.seed, config.max_answer_tokens)
    save_model(model, run.out, run.inputs["sft"])
    write_json(run.out / "training.json", result.history)
    return {
        "pairs": len(pairs),
        "sampled_accuracy": round(right, 4),
        "epochs": round(config.training.steps / (len(pairs) // batch_size), 3),
        "train_loss": result.history[-1]["loss"],
        "margin_accuracy": result.history[-1]["margin_accuracy"],
        "accuracy_before": round(before, 4),
        "accuracy_after": round(after, 4),
        "accuracy_tasks": config.accuracy_tasks,
        "steps_per_second": round(result.steps_run / max(result.seconds, 1e-9), 2),
        **result.figures,
    }


def _pairs(config: DPOConfig, run: StageRun, model: Decoder, tokenizer: Tokenizer) -> tuple[list[Pair], float]:
    """The pairs and the share of right answers among all samples; read back if an earlier try has written them."""
    path, summary = run.out / "pairs.jsonl", run.scratch / "sampled.json"
    if summary.exists():
        return [json.loads(line) for line in path.read_text().splitlines()], json.loads(summary.read_text())
    tasks = make_tasks(config.prompts, run.seed + 1, "train")
    answers = sample_answers(
        model,
        tokenizer,
        tasks,
        config.samples_per_prompt,
        config.temperature,
        config.max_answer_tokens,
        run.seed,
        lambda done, total: run.log.progress(done, total, "answers"),
    )
    pairs, right = find_pairs(tasks, answers)
    _write_pairs(path, pairs)
    write_json(summary, right)
    return pairs, right


def find_pairs(tasks: list[Task], answers: list[list[str]]) -> tuple[list[Pair], float]:
    """One pair for each task with both a right and a wrong answer (the first of each), and the share of right ones."""
    pairs: list[Pair] = []
    right = total = 0
    for task, replies in zip(tasks, answers, strict=True):
        good = [reply for reply in replies if is_correct(task, reply)]
        bad = [reply for reply in replies if not is_correct(task, reply)]
        right, total = right + len(good), total + len(replies)
        if good and bad:
            pairs.append(
                {"id": task.id, "family": task.family, "prompt": task.prompt, "chosen": good[0], "rejected": bad[0]}
            )
    return pairs, right / max(total, 1)


def _write_pairs(path: Path, pairs: list[Pair]) -> None:
    provenance = {"source": "sampled from the sft model", "generation": 1}
    write_text(path, "".join(json.dumps(pair | {"provenance": provenance}) + "\n" for pair in pairs))


def _example(tokenizer: Tokenizer, prompt: str, reply: str) -> tuple[list[int], list[int]]:
    return tokenizer.chat_ids_with_mask([{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}])


@torch.no_grad()
def _reference(
    model: Decoder, examples: list[tuple[list[int], list[int]]], pad_id: int, training: TrainingConfig
) -> Tensor:
    """Log-probability of each example's reply under `model`, `[len(examples)]`, in the precision of the training."""
    device = resolve_device(training.device)
    model.to(device)
    batches = [pad_examples(examples[i : i + 64], pad_id) for i in range(0, len(examples), 64)]
    try:
        with autocast(resolve_precision(training.precision, device), device), dropless(model):
            return torch.cat([_reply_logprobs(model, batch).cpu() for batch in batches])
    finally:
        mark_padding(model, None)


def _reply_logprobs(model: Decoder, batch: TokenBatch) -> Tensor:
    """Log-probability of each row's reply, `[B]`. The head is applied to the places that are counted alone."""
    device = model.embedding.weight.device
    mark_padding(model, behind_last_target(batch.weights_BT, device))
    inputs = on_device(batch.inputs_BT, device)
    attend = training_attention(inputs.shape, device, attention_specs(model))
    hidden_BTC = model.hidden_states(inputs, None, attend, context_length=inputs.shape[1])
    kept = batch.weights_BT.flatten().nonzero()[:, 0]  # known on the host
    places, targets_N = on_device(kept, device), on_device(batch.targets_BT.flatten()[kept], device)
    hidden_NC = hidden_BTC.flatten(0, 1).index_select(0, places)
    hidden_NC = hidden_NC.to(autocast_dtype(device.type) or hidden_NC.dtype)
    head = model.embedding.weight if model.head is None else model.head.weight
    bias = None if model.head is None else model.head.bias
    logprobs_N = target_logprobs(hidden_NC, head, targets_N, bias, model.config.logit_scale, model.config.logit_softcap)
    weights_BT = on_device(batch.weights_BT, device)
    logprobs_BT = torch.zeros_like(weights_BT).flatten().index_copy(0, places, logprobs_N).view_as(weights_BT)
    return sequence_logprobs(logprobs_BT, weights_BT)


def _loss(model: Decoder, batch: PairBatch, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs = _reply_logprobs(model, batch.rows)
    chosen, rejected = logprobs.chunk(2)
    reference_chosen, reference_rejected = on_device(batch.reference, logprobs.device).chunk(2)
    losses, margins = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
    return losses.sum(), {"margin": margins.sum(), "margin_accuracy": (margins > 0).sum()}
