"""Configuration of the training loop and of pre-training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import GristmillError
from ..model.config import ModelShape
from ..model.presets import preset
from ..model.schemes import InitScheme

Packing = Literal["stream", "best_fit"]
Objective = Literal["causal", "masked"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MuonConfig(Frozen):
    """Muon for the blocks' matrices; embeddings, head, norms and biases keep AdamW under `learning_rate`."""

    learning_rate: float = Field(default=0.02, gt=0, description="Peak rate of the matrices.")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Decay of the gradient's running sum.")
    newton_schulz_steps: int = Field(default=5, gt=0, description="Iterations that orthogonalize an update.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled decay of the matrices.")


class MemoryConfig(Frozen):
    """What is given up to need less memory."""

    activation_checkpointing: Literal["none", "sqrt", "block", "selective"] = Field(
        default="none",
        description="What backward computes again: nothing; the blocks of each of sqrt(layers) groups; every block; "
        "every block but its matrix products and attention.",
    )
    offload: Literal["none", "cpu", "disk"] = Field(
        default="none", description="Where the optimizer's state lies: with the weights, in host memory, or in files."
    )
    offload_directory: str | None = Field(
        default=None, description="Where the files of offload: disk lie; the stage's scratch directory by default."
    )


class ParallelConfig(Frozen):
    """How the processes that torchrun starts share the work. One process ignores it."""

    data: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        default="ddp",
        description="What is cut into shards over the processes: nothing; optimizer state; gradients too; weights too.",
    )


class StabilityConfig(Frozen):
    """What is done about spikes of loss or gradient norm and about numbers that are not finite."""

    skip_spikes: bool = Field(
        default=True, description="Make no step where loss or gradient norm is above mean + sigmas * deviation."
    )
    window: int = Field(default=128, ge=8, description="Steps that the mean and the deviation are taken over.")
    sigmas: float = Field(default=6.0, gt=0, description="Deviations above the mean that make a spike.")
    rollback_after: int | None = Field(
        default=16,
        gt=0,
        description="Steps out of `window` that may be spikes or not finite before the run goes back to its last "
        "golden checkpoint and passes over the batches since; null never goes back.",
    )
    max_rollbacks: int = Field(default=3, ge=0, description="Times a run may go back before it stops.")


class WatchConfig(Frozen):
    """What is written down beside the loss, and where to."""

    norms_every: int = Field(
        default=50, ge=0, description="Steps between norms of weights and updates (they need a copy); 0: never."
    )
    sample_every: int = Field(default=0, ge=0, description="Steps between sampled continuations; 0: never.")
    sample_prompts: tuple[str, ...] = Field(default=(), description="Texts that are continued.")
    sample_tokens: int = Field(default=32, gt=0, description="Tokens of a continuation.")
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="Further places for the metrics; each is a package to install."
    )

    @model_validator(mode="after")
    def _samples_have_prompts(self) -> WatchConfig:
        if self.sample_every and not self.sample_prompts:
            raise ValueError("sample_every needs sample_prompts, the texts to continue")
        return self


class TrainingConfig(Frozen):
    """What every training stage sets: batch, optimizer, schedule, precision, memory, how often to look and to save."""

    steps: int = Field(gt=0, description="Optimizer steps.")
    batch_size: int = Field(gt=0, description="Sequences per optimizer step, over all processes.")
    micro_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="Sequences per forward pass and process; less than its share of batch_size accumulates gradients.",
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine",
        description="After the warm-up: half a cosine; the peak, then a linear decay (wsd); or the peak throughout.",
    )
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Last learning rate over the peak.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up to the peak.")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="wsd: share of the steps in which it decays.")
    tail_steps: int = Field(default=0, ge=0, description="Last steps, all at the lowest rate, after cosine or wsd.")
    optimizer: Literal["adamw", "muon", "adam8bit", "adafactor"] = Field(
        default="adamw", description="AdamW; Muon with AdamW; AdamW with states of 8 bits; Adafactor."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the gradient's mean.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay of the squared gradient's mean.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the squared gradient's mean.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled decay of matrices; norms are not decayed.")
    muon: MuonConfig = Field(default_factory=MuonConfig, description="For optimizer: muon.")
    clip_norm: float | None = Field(
        default=1.0, gt=0, description="Gradients are scaled down to this global norm; null never."
    )
    z_loss: float = Field(default=0.0, ge=0, description="Weight of the mean squared log of the softmax's sum.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field(
        default="auto",
        description="Precision of the products; auto is bf16 where the hardware multiplies it itself, else fp32.",
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="What weights and optimizer state are kept in; bf16 halves them and loses small steps.",
    )
    compile: Literal["auto", "off", "blocks", "model"] = Field(
        default="auto", description="Compile each block, or all of them together; auto is model on a GPU, else off."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is cuda where there is a GPU.")
    deterministic: bool = Field(
        default=False, description="On a GPU: the same bits in every run, with slower kernels. A CPU always does so."
    )
    memory: MemoryConfig = Field(default_factory=MemoryConfig, description="What is given up to need less memory.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="How processes share the work.")
    checkpoint_every: int = Field(default=50, gt=0, description="Steps between checkpoints; a cut run loses fewer.")
    keep_checkpoints: int = Field(default=2, gt=0, description="Newest checkpoints kept while training.")
    keep_golden: int = Field(
        default=1, ge=0, description="Checkpoints kept beside them from calm stretches, to go back to after spikes."
    )
    async_checkpoints: bool = Field(default=True, description="Write checkpoints while training goes on.")
    stability: StabilityConfig = Field(default_factory=StabilityConfig, description="Against spikes and NaN.")
    watch: WatchConfig = Field(default_factory=WatchConfig, description="What is written down beside the loss.")
    log_every: int = Field(default=5, gt=0, description="Steps between logged metrics.")
    prefetch: int = Field(default=2, ge=0, description="Batches made ahead by a thread; 0: made when needed.")

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainingConfig:
        if self.schedule == "constant" and self.tail_steps:
            raise ValueError("tail_steps belongs to schedule cosine or wsd: constant never falls")
        if self.tail_steps and self.warmup_steps + self.tail_steps > self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) + tail_steps ({self.tail_steps}) exceed steps ({self.steps})"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) is more than batch_size ({self.batch_size})")
        if self.memory.offload_directory is not None and self.memory.offload != "disk":
            raise ValueError("memory.offload_directory is for memory.offload: disk")
        if self.weights == "bf16" and self.precision in ("fp32", "fp16"):
            raise ValueError(f"weights: bf16 cannot be multiplied in {self.precision}; set precision: bf16 or auto")
        return self


class RecipeModel(ModelShape):
    """A shape spelled out, or a preset's with some fields changed. Written out it is always spelled out."""

    preset: str | None = Field(
        default=None, exclude=True, description="A shape by name (`gristmill plan model NAME`); other keys change it."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        if not isinstance(given["preset"], str):
            raise ValueError(f"preset: expected the name of a shape, not {given['preset']!r}")
        try:
            shape = preset(given["preset"])
        except GristmillError as error:
            raise ValueError(f"preset: {error}") from None
        return merged(shape.model_dump(exclude={"vocab_size"}), given)


def merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `changes` in them, key by key also inside objects such as `experts`."""
    together = dict(fields)
    for key, value in changes.items():
        inner = together.get(key)
        together[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return together


class MixturePhase(Frozen):
    """From a step on, the domains' weights, in place of the corpus's."""

    from_step: int = Field(ge=0, description="First step, from 0, that draws by these weights.")
    weights: dict[str, float] = Field(description="Domain to weight; a domain left out is not drawn.")


class BenchmarksConfig(Frozen):
    """Questions with known answers that the model is asked at every validation."""

    paths: tuple[str, ...] = Field(
        min_length=1,
        description="Files of items, directories of such, or YAML descriptions, as `gristmill evaluate --tasks` takes "
        "them.",
    )
    limit: int = Field(default=100, ge=2, description="First items of each benchmark that are asked.")


class PretrainConfig(Frozen):
    """Stage `base`: pre-training from random weights."""

    model: RecipeModel = Field(
        description="Shape of the model, or a preset and what to change; the vocabulary comes from the tokenizer."
    )
    init: InitScheme = Field(
        default="gpt2",
        description="Random weights: gpt2, depth_scaled (later layers add less) or mup (the best learning rate holds "
        "over widths).",
    )
    mup_base_width: int | None = Field(
        default=None,
        gt=0,
        description="mup: hidden_size of the model that the learning rate was tuned on, all whose widths are taken to "
        "be smaller by one ratio.",
    )
    sequence_length: int = Field(default=256, gt=1, description="Tokens predicted per sequence.")
    document_mask: bool = Field(
        default=False, description="Keep attention inside documents where several share a sequence."
    )
    packing: Packing = Field(
        default="stream",
        description="stream cuts all tokens every sequence_length; best_fit packs whole documents, cuts only longer "
        "ones, and always masks.",
    )
    objective: Objective = Field(
        default="causal",
        description="causal predicts the next token (decoder); masked predicts hidden ones (encoder: causal false).",
    )
    mask_rate: float = Field(default=0.15, gt=0, lt=1, description="masked: share of tokens to be predicted.")
    fim_rate: float = Field(
        default=0.0, ge=0, le=1, description="causal: share of documents turned to fill-in-the-middle."
    )
    mixture: tuple[MixturePhase, ...] = Field(
        default=(), description="Weights of the domains by step; the corpus's weights before the first and without any."
    )
    training: TrainingConfig = Field(description="The training loop.")
    validate_every: int = Field(
        default=100, gt=0, description="Steps between measurements of validation bits per byte."
    )
    validation_tokens: int = Field(default=8192, gt=0, description="Validation tokens per domain in each measurement.")
    benchmarks: BenchmarksConfig | None = Field(
        default=None, description="Benchmarks of log-likelihood, measured whenever validation is."
    )

    @model_validator(mode="after")
    def _sequences_fit(self) -> PretrainConfig:
        if self.sequence_length > self.model.max_seq_len:
            raise ValueError(
                f"sequence_length ({self.sequence_length}) exceeds model.max_seq_len ({self.model.max_seq_len})"
            )
        if self.model.causal != (self.objective == "causal"):
            raise ValueError(
                f"model.causal is {str(self.model.causal).lower()}, but objective is {self.objective}: a decoder "
                "(causal: true) predicts the next token, an encoder (causal: false) masked ones"
            )
        if self.objective == "masked" and self.fim_rate:
            raise ValueError("fim_rate is for objective: causal")
        watch = self.training.watch
        if self.objective == "masked" and watch.sample_every:
            raise ValueError("training.watch.sample_every is for objective: causal: an encoder continues no text")
        if watch.sample_every and watch.sample_tokens >= self.model.max_seq_len:
            raise ValueError(
                f"training.watch.sample_tokens ({watch.sample_tokens}) leaves no place for a prompt in "
                f"model.max_seq_len ({self.model.max_seq_len})"
            )
        if self.objective == "masked" and self.benchmarks is not None:
            raise ValueError("benchmarks is for objective: causal, whose models give texts a likelihood")
        starts = [phase.from_step for phase in self.mixture]
        if starts != sorted(set(starts)):
            raise ValueError(f"mixture: from_step must rise from phase to phase, not {starts}")
        if starts and starts[-1] >= self.training.steps:
            raise ValueError(f"mixture: a phase from step {starts[-1]} on never comes: steps is {self.training.steps}")
        if (self.init == "mup") != (self.mup_base_width is not None):
            raise ValueError("init: mup and mup_base_width belong together; give both or neither")
        if self.init == "mup" and self.training.optimizer == "adafactor":
            raise ValueError(
                "init: mup does not go with optimizer: adafactor, which moves a weight relative to its size, so that "
                "muP's factors would count width twice; take adamw, adam8bit or muon"
            )
        return self
