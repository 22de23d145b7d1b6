"""The one training loop: pre-training, SFT, DPO and every other stage that learns run through `train`."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..artifact import CHECKPOINTS, StageRun
from ..errors import GristmillError
from ..model.experts import expert_load, update_selection_bias
from .activations import checkpoint_activations
from .checkpoint import Checkpoints
from .compiled import compiled, eager, resolve_compile
from .config import TrainingConfig
from .data import Shard
from .device import deterministic, freed_memory_kept, resolve_device
from .fp8 import use_fp8
from .loader import Ahead
from .loggers import open_loggers
from .memory import PeakMeter, Rows, check_fits, compare, say
from .optimizers import build_optimizer, export_state, import_state, init_state, learning_rate_at
from .parallel.data_parallel import gather_model, parallelize
from .parallel.mesh import build_mesh
from .parallel.processes import Processes, current_processes
from .precision import LossScaler, autocast, resolve_precision
from .stability import Guard, name_not_finite
from .step import Batch, LossFunction, MicroBatch, Objective, StepTools, make_step
from .throughput import flops_per_token
from .watch import Watch, weights

HOPELESS = 8  # steps in a row whose numbers are not finite: no batch is at fault any more
Evaluate = Callable[[Any, int], dict[str, Any]]
Write = Callable[[Any], Iterable[tuple[str, str]]]
BatchAt = Callable[[int, Shard], Batch]


@dataclass(frozen=True)
class TrainResult:
    """`model` is the trained one, whole; None in all processes but the main one.
    `history` has one entry per logged step; `seconds` and `steps_run` count only the steps this process ran, those
    that it went back behind too. `figures` are the run's own: steps not made, times it went back, batches passed over
    by that, peak memory beside what was expected."""

    model: Any
    history: list[dict[str, Any]]
    seconds: float
    steps_run: int
    figures: dict[str, Any]


def train(
    model: Any,
    batch_at: BatchAt,
    loss_function: LossFunction,
    config: TrainingConfig,
    run: StageRun,
    *,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
    mup_base_width: int | None = None,
    sequence_length: int | None = None,
    rows: Sequence[Rows] = (),
    write: Write | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `model` in place for `config.steps` steps, from the newest checkpoint in `run.scratch` if there is one.

    `batch_at(number, shard)` gives a process's rows of batch `number` and must depend on its arguments alone: that is
    what makes a resumed run equal to an undisturbed one. `evaluate` is called every `evaluate_every` steps and at the
    end; its figures join the history. `mup_base_width`: parameters learn at muP's rates (`parameter_groups`).
    `sequence_length`, the longest row's, lets memory be reckoned before the first step: what would not fit is refused.
    `rows` are those of a step, where they are not `config.batch_size` of that length. `write` gives texts with what the
    model makes of them, which are logged every `watch.sample_every` steps. `identity` must be the same where a cut run
    goes on, such as the hash of the tokenizer.
    """
    with ExitStack() as stack:
        training = Training(model, loss_function, config, run, mup_base_width, sequence_length, rows, identity, stack)
        return training.go(batch_at, evaluate, evaluate_every, write)


class Training:
    """A run under way: what it is made with, and where it stands.

    Batch number = step + `passed_over`: after spikes that do not end the run goes back to a golden checkpoint and on
    from there with batches it has not seen.
    """

    def __init__(
        self,
        model: Any,
        loss_function: LossFunction,
        config: TrainingConfig,
        run: StageRun,
        mup_base_width: int | None,
        sequence_length: int | None,
        rows: Sequence[Rows],
        identity: Mapping[str, Any] | None,
        stack: ExitStack,
    ):
        self.model, self.config, self.log = model, config, run.log
        self.processes = current_processes()
        self.shard = Shard(self.processes.rank, self.processes.count)
        self.shard.rows(config.batch_size)
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.checkpoints = stack.enter_context(self._open_checkpoints(run, identity))
        self.estimate = None
        if sequence_length is not None:
            batch = rows or (Rows(config.batch_size, sequence_length),)
            self.estimate = check_fits(model.config, config, batch, self.processes.count, self.precision, self.device)
            say(run.log, self.estimate)
        stack.enter_context(deterministic(self.device, config.deterministic))
        stack.enter_context(freed_memory_kept(self.device))
        self.meter = PeakMeter(self.device)
        self._place(stack)
        objective = Objective(model, loss_function)
        mesh = build_mesh(self.processes, config.parallel)
        self.trainee = parallelize(objective, config, mesh, self.device, self.precision)
        self.optimizer = build_optimizer(
            model,
            config,
            mup_base_width,
            process_group=self.trainee.process_group,
            zero_group=self.trainee.zero_group,
            scratch=run.scratch,
        )
        self.guard = Guard(config.stability, self.device, scaled=self.precision == "fp16")
        self.scaler = LossScaler(self.precision, self.device)
        self.tools = StepTools(
            module=self.trainee.module,
            optimizer=self.optimizer,
            gradient_sync=self.trainee.gradient_sync,
            gradient_norm=self.trainee.gradient_norm,
            judge=self.guard.judge,
            autocast=partial(autocast, self.precision, self.device),
            processes=self.processes,
            clip_norm=config.clip_norm,
            scaler=self.scaler,
            device=self.device,
        )
        self.step = self.passed_over = self.rollbacks = self.skipped = 0
        self.hopeless = 0  # steps in a row, as far as is known, that were not finite
        self.unlogged = 0  # of the skipped ones, those that no entry has told of yet
        self.made = 0  # steps by this process
        self.history: list[dict[str, Any]] = []
        self._restore(self.checkpoints.load_latest(self._tensors))
        if self.step:
            self.log.note(f"resumed after step {self.step} of {config.steps}")
        self.watch = self._open_watch(run, sequence_length)
        stack.callback(self.watch.close)

    def _open_watch(self, run: StageRun, sequence_length: int | None) -> Watch:
        flops = None if sequence_length is None else flops_per_token(self.model.config, sequence_length)
        watch, settings = self.config.watch, self.config.model_dump(mode="json")
        loggers = []
        if self.processes.main:
            loggers = open_loggers(watch.loggers, run.out.parent.parent, run.log.stage, settings, self.step)
        return Watch(watch, run.log, flops, self.device, self.precision, self.processes, loggers)

    def _open_checkpoints(self, run: StageRun, identity: Mapping[str, Any] | None) -> Checkpoints:
        config = self.config
        checkpoints = Checkpoints(
            run.scratch / CHECKPOINTS,
            config.keep_checkpoints,
            config.keep_golden,
            # What was offloaded for want of memory is not copied into it.
            config.async_checkpoints and config.memory.offload == "none",
            self.processes,
            identity={"model": type(self.model).__name__, "optimizer": config.optimizer} | dict(identity or {}),
            note=run.log.note,
        )
        checkpoints.check_writable()
        return checkpoints

    def _place(self, stack: ExitStack) -> None:
        """The model on the device, in the types and with the recomputation that the configuration asks for."""
        model, config = self.model, self.config
        if config.weights == "bf16":
            model.to(torch.bfloat16)
        model.to(self.device).train()
        if self.precision == "fp8" and not use_fp8(model):
            raise GristmillError("precision: fp8 finds no linear layer that is large enough to gain by it; set bf16")
        checkpoint_activations(model, config.memory.activation_checkpointing)
        stack.callback(checkpoint_activations, model, "none")
        stack.enter_context(compiled(model, resolve_compile(config.compile, self.device, self._is_sharded())))

    def _is_sharded(self) -> bool:
        return self.processes.count > 1 and self.config.parallel.data in ("zero2", "zero3")

    def go(self, batch_at: BatchAt, evaluate: Evaluate | None, evaluate_every: int, write: Write | None) -> TrainResult:
        """From where the run stands to its last step."""
        started = time.monotonic()
        with no_garbage_pauses():
            while self.step < self.config.steps:
                self._go_on(batch_at, evaluate, evaluate_every, write)
        self.checkpoints.wait()
        seconds = time.monotonic() - started
        self.model.eval()
        counts = {"skipped_steps": self.skipped, "rollbacks": self.rollbacks, "passed_over": self.passed_over}
        figures: dict[str, Any] = counts
        if self.estimate is not None:
            figures |= compare(self.estimate, self.meter.peak())
        return TrainResult(gather_model(self.model), self.history, seconds, self.made, figures)

    def _go_on(self, batch_at: BatchAt, evaluate: Evaluate | None, evaluate_every: int, write: Write | None) -> None:
        """Steps to the end, or until the run goes back."""
        config, offset = self.config, self.passed_over

        def micro_batches(step: int) -> Sequence[MicroBatch]:
            return batch_at(step + offset, self.shard).split(config.micro_batch_size)

        with Ahead(micro_batches, self.step, config.steps, config.prefetch, self.device.type == "cuda") as ahead:
            while self.step < config.steps:
                batches = ahead.get(self.step)
                done = self.step + 1
                last = done == config.steps
                evaluated = evaluate is not None and evaluate_every > 0 and (done % evaluate_every == 0 or last)
                sampled = write is not None and self.watch.wants_sample(done)
                logged = done % config.log_every == 0 or last or done == 1 or evaluated or sampled
                logged = logged or self.watch.wants_norms(done)
                saved = done % config.checkpoint_every == 0 and not last
                figures, norms = self._make_step(batches, logged)
                self.step = done
                if logged or saved:  # only here does the loop wait for the device
                    values = self._read(figures)
                    if self._in_trouble():
                        self._go_back(batches)
                        return
                    if evaluated and evaluate is not None:
                        values |= self._aside(evaluate, done)
                    if sampled and write is not None:
                        self._aside(self._write_samples, write)
                    if logged:
                        values |= norms | {"skipped": self.unlogged}
                        self.history.append(self.watch.entry(done, values, ahead.stall_seconds))
                        self.unlogged = 0
                        self.checkpoints.poll()
                    if saved:
                        self._save()
                self.log.progress(done, config.steps, "steps")

    def _make_step(self, batches: Sequence[MicroBatch], logged: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One step; its figures on the device and, where they are due, norms of weights and update and the experts'
        load, which wait for it."""
        rate = learning_rate_at(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        measured = self.watch.wants_norms(self.step + 1)
        before: list[Tensor] = []
        figures = make_step(self.tools, batches, (lambda: before.extend(weights(self.model))) if measured else None)
        self.made += 1
        self.watch.step(sum(batch.tokens for batch in batches))
        numbers = {"learning_rate": rate}
        if measured:
            numbers |= self.watch.norms(self.model, before)
        if logged:
            numbers |= expert_load_metrics(self.model, self.processes)
        update_selection_bias(self.model)
        return figures, numbers

    def _read(self, figures: dict[str, Tensor]) -> dict[str, Any]:
        """The step's figures as numbers; the steps since the last reading that were not made are counted and noted."""
        found = dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
        del found["skipped"]
        counts = self.guard.counts()
        lost = counts.spikes + counts.not_finite
        self.skipped, self.unlogged = self.skipped + lost, self.unlogged + lost
        bad = not math.isfinite(found["grad_norm"] + found["loss"]) and not counts.overflows
        self.hopeless = self.hopeless + counts.not_finite if bad else 0
        if lost:
            self.log.note(
                f"skipped {lost} of the steps up to {self.step}: {counts.spikes} spikes, {counts.not_finite} not finite"
            )
        return found

    def _in_trouble(self) -> bool:
        return self.guard.wants_rollback() or self.hopeless >= HOPELESS

    def _aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)` with the model as it answers, at no cost to the pace that is written down."""
        self.model.eval()
        with self.watch.apart(), eager():
            found = self.trainee.run(function, *arguments)
        self.model.train()
        return found

    def _write_samples(self, model: Any, write: Write) -> None:
        self.watch.samples(self.step, write(model))

    def _save(self) -> None:
        extra = {
            "step": self.step,
            "passed_over": self.passed_over,
            "rollbacks": self.rollbacks,
            "skipped": self.skipped,
            "unlogged": self.unlogged,
            "hopeless": self.hopeless,
            "history": self.history,
        }
        with self.watch.apart():
            self.checkpoints.save(self.step, self._tensors(), extra, golden=self.guard.calm())

    def _tensors(self) -> dict[str, Tensor]:
        """All that a run goes on from, but numbers. Buffers too: the bias that balances experts is no parameter."""
        init_state(self.optimizer)
        parts = {
            "model": self.model.state_dict(),
            "optimizer": export_state(self.optimizer, self._names()),
            "guard": self.guard.state(),
            "scaler": self.scaler.state(),
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.trainee.named_parameters()}

    def _restore(self, found: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if found is None:
            return
        tensors, extra = found  # weights, guard and scale were filled in place
        import_state(self.optimizer, self._names(), _under(tensors, "optimizer/"))
        self.step, self.passed_over, self.rollbacks = extra["step"], extra["passed_over"], extra["rollbacks"]
        self.skipped, self.unlogged = extra["skipped"], extra["unlogged"]
        self.hopeless, self.history = extra["hopeless"], extra["history"]

    def _go_back(self, batches: Sequence[MicroBatch]) -> None:
        """To the last golden checkpoint, from where the run goes on with the batches that come next. GristmillError
        where it may not, with the tensor that is not finite if one is at fault."""
        failed, seen, rollbacks = self.step, self.step + self.passed_over, self.rollbacks
        skipped, unlogged = self.skipped, self.unlogged
        limit = self.config.stability.max_rollbacks if self.config.stability.rollback_after is not None else 0
        with self.watch.apart():
            found = self.checkpoints.load_golden(self._tensors) if rollbacks < limit else None
        if found is None:
            raise GristmillError(f"{self._what_is_wrong(batches)}; {self._why_no_way_back(limit)}")
        self._restore(found)
        self.rollbacks, self.passed_over = rollbacks + 1, seen - self.step
        self.skipped, self.unlogged, self.hopeless = skipped, unlogged, 0
        self.log.note(f"went back from step {failed} to {self.step}; the {failed - self.step} batches are passed over")
        self._save()  # the newest checkpoint again: a run that is cut here goes on from it

    def _what_is_wrong(self, batches: Sequence[MicroBatch]) -> str:
        if not self.hopeless:
            return f"loss or gradient norm keeps spiking at step {self.step}"

        def again(batch: MicroBatch) -> Tensor:
            with self.tools.autocast():
                total: Tensor = self.tools.module(batch)[0]
            return total

        # One at a time: the activations of all of them have no room.
        names = (name_not_finite(partial(again, batch), self.model, self.processes) for batch in batches)
        name = next((name for name in names if name is not None), "the gradient's norm, but no tensor alone,")
        return f"{name} is not finite at step {self.step}, and no step could be made for {self.hopeless} steps"

    def _why_no_way_back(self, limit: int) -> str:
        advice = "lower learning_rate, raise warmup_steps or look at the data"
        if limit and self.rollbacks >= limit:
            return f"the run has gone back {limit} times already (stability.max_rollbacks): {advice}"
        if limit:
            return f"there is no golden checkpoint to go back to: {advice}"
        return f"going back is switched off (stability.rollback_after): {advice}"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def expert_load_metrics(model: nn.Module, processes: Processes) -> dict[str, float]:
    """The step's load of the experts: the highest max/mean of any layer, how many experts of all layers get less than a
    tenth of the mean, and the highest share of dropped assignments of any layer; nothing without experts."""
    loads = expert_load(model, processes.all_reduce)
    if not loads:
        return {}
    return {
        "expert_load_max_over_mean": max(load["max_over_mean"] for load in loads),
        "collapsed_experts": sum(len(load["collapsed"]) for load in loads),
        "dropped_assignments": max(load["dropped"] for load in loads),
    }


@contextmanager
def no_garbage_pauses() -> Iterator[None]:
    """Python's cycle collector looks through all objects from time to time, up to half a second of a large run; what a
    step makes holds no cycles."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
