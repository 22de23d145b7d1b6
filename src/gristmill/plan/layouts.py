"""How a model and its batch are spread over devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """Sizes of the groups of devices. `data` replicas each hold `tensor * pipeline` devices; the experts of a layer are
    shared out over `expert` devices, which are taken from the data-parallel ones (or, in serving, from the tensor-
    parallel ones). `zero` is the stage (0 to 3) by which data-parallel devices share states."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    zero: int = 0

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def expert_in_data(self) -> int:
        """How many of the data-parallel devices share out the experts: the largest part of `expert` that divides them.
        What is left of it divides `tensor`, see `check`."""
        return math.gcd(self.expert, self.data)

    @property
    def tensor_in_expert(self) -> int:
        """Over how many tensor-parallel devices each expert is cut."""
        return self.tensor * self.expert_in_data // self.expert

    def check(self, config: ModelConfig, devices_per_node: int = 8) -> None:
        """GristmillError that names the rule which this layout breaks for this model."""
        for name in ("tensor", "pipeline", "data", "expert"):
            if getattr(self, name) < 1:
                raise GristmillError(f"{name} parallelism must be at least 1, not {getattr(self, name)}")
        if self.zero not in (0, 1, 2, 3):
            raise GristmillError(f"zero must be a stage, 0 to 3, not {self.zero}")
        if devices_per_node < 1:
            raise GristmillError(f"devices_per_node must be at least 1, not {devices_per_node}")
        if config.num_heads % self.tensor:
            raise GristmillError(f"tensor parallelism {self.tensor} does not divide {config.num_heads} attention heads")
        if max(config.num_kv_heads, self.tensor) % min(config.num_kv_heads, self.tensor):
            raise GristmillError(
                f"tensor parallelism {self.tensor} does not fit {config.num_kv_heads} key/value heads: one must be a "
                "multiple of the other"
            )
        if self.pipeline > config.num_layers:
            raise GristmillError(
                f"pipeline of {self.pipeline} stages is longer than the model's {config.num_layers} layers"
            )
        if self.expert > 1:
            self._check_experts(config)

    def _check_experts(self, config: ModelConfig) -> None:
        if config.experts is None:
            raise GristmillError("expert parallelism needs a model with experts; this one has none")
        if config.experts.num_experts % self.expert:
            raise GristmillError(
                f"expert parallelism {self.expert} does not divide {config.experts.num_experts} experts"
            )
        if (self.data * self.tensor) % self.expert:
            raise GristmillError(
                f"expert parallelism {self.expert} does not divide {self.data * self.tensor} devices that share "
                "layers (data * tensor)"
            )
