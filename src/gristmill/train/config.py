"""Configuration of the training loop and of pre-training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import GristmillError
from ..model.config import ModelShape
from ..model.presets import preset
from ..model.schemes import InitScheme

Packing = Literal["stream", "best_fit"]


class TrainingConfig(BaseModel):
    """What every training stage sets: length, batch, AdamW, schedule, precision, how often to look and to save."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0, description="Optimizer steps.")
    batch_size: int = Field(gt=0, description="Sequences per optimizer step.")
    micro_batch_size: int | None = Field(
        default=None, gt=0, description="Sequences per forward pass; less than batch_size accumulates gradients."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Last learning rate over the peak.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up to the peak.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the gradient's mean.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW's decay of the squared gradient's mean.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled decay of matrices; norms are not decayed.")
    clip_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global norm.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Precision of the products; auto is bf16 where the hardware multiplies it itself."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is cuda where there is a GPU.")
    checkpoint_every: int = Field(default=50, gt=0, description="Steps between checkpoints; a cut run loses fewer.")
    keep_checkpoints: int = Field(default=2, gt=0, description="Newest checkpoints kept while training.")
    log_every: int = Field(default=5, gt=0, description="Steps between logged metrics.")


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


class PretrainConfig(BaseModel):
    """Stage `base`: causal pre-training from random weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    training: TrainingConfig = Field(description="The training loop.")
    validate_every: int = Field(
        default=100, gt=0, description="Steps between measurements of validation bits per byte."
    )
    validation_tokens: int = Field(default=8192, gt=0, description="Validation tokens per domain in each measurement.")

    @model_validator(mode="after")
    def _sequences_fit(self) -> PretrainConfig:
        if self.sequence_length > self.model.max_seq_len:
            raise ValueError(
                f"sequence_length ({self.sequence_length}) exceeds model.max_seq_len ({self.model.max_seq_len})"
            )
        if not self.model.causal:
            raise ValueError("model.causal must be true: pre-training predicts the next token")
        if (self.init == "mup") != (self.mup_base_width is not None):
            raise ValueError("init: mup and mup_base_width belong together; give both or neither")
        return self
