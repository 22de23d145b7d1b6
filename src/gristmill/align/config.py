"""Configuration of the alignment stages."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..train.config import TrainingConfig


def check_watch(training: TrainingConfig) -> None:
    """ValueError where texts are to be sampled, which stage base alone does."""
    if training.watch.sample_every:
        raise ValueError("training.watch.sample_every is for stage base; here accuracy is measured before and after")


class SFTConfig(BaseModel):
    """Stage `sft`: supervised fine-tuning on instruction tasks, loss on the assistant's words only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int = Field(gt=0, description="Training tasks generated; prompts of the held-out split never occur.")
    training: TrainingConfig = Field(description="The training loop.")
    replay_sequences: int = Field(
        default=0,
        ge=0,
        description="Sequences of pre-training text in each step, so that the model keeps its language.",
    )
    replay_weight: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the loss that those sequences have, where there are any."
    )
    accuracy_tasks: int = Field(default=200, gt=0, description="Held-out tasks answered before and after.")
    max_answer_tokens: int = Field(default=16, gt=0, description="Longest reply when tasks are answered.")

    @model_validator(mode="after")
    def _parts_fit(self) -> SFTConfig:
        check_watch(self.training)
        if self.tasks < self.training.batch_size:
            raise ValueError(f"tasks ({self.tasks}) do not fill one batch of {self.training.batch_size}")
        return self


class DPOConfig(BaseModel):
    """Stage `dpo`: direct preference optimization on pairs of the model's own right and wrong answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(gt=0, description="Training prompts answered by the model to find pairs.")
    samples_per_prompt: int = Field(default=4, gt=1, description="Answers sampled for each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of those answers.")
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull towards the reference model.")
    training: TrainingConfig = Field(description="The training loop; its steps may pass over the pairs several times.")
    accuracy_tasks: int = Field(default=200, gt=0, description="Held-out tasks answered before and after.")
    max_answer_tokens: int = Field(default=16, gt=0, description="Longest reply when tasks are answered.")

    @model_validator(mode="after")
    def _parts_fit(self) -> DPOConfig:
        check_watch(self.training)
        if self.training.z_loss:
            raise ValueError("training.z_loss is for stages base and sft: DPO compares texts and normalises nothing")
        return self
