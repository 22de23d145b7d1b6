"""What a family of models is on disk: the keys of its `config.json` and the tensors of its weight files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...model.config import ModelConfig
from .settings import Settings

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """A change of a stored tensor and its inverse; both must take tensors on the `meta` device too."""

    load: Callable[[Tensor], Tensor]
    save: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """One stored tensor: its name in the file, its shape there, and how it becomes rows of our parameter.

    `linear` says that readers hold it as the weight `[out, in]` of a linear layer inside a block, which is what is
    quantized.
    """

    name: str
    shape: Shape
    transform: Transform | None = None
    linear: bool = False

    def load(self, stored: Tensor) -> Tensor:
        return stored if self.transform is None else self.transform.load(stored)

    def save(self, ours: Tensor) -> Tensor:
        return ours if self.transform is None else self.transform.save(ours)

    def loaded_shape(self) -> Shape:
        """The shape after `load`."""
        if self.transform is None:
            return self.shape
        return tuple(self.transform.load(torch.empty(self.shape, device="meta")).shape)


# Our parameter's (or buffer's) name -> the tensors it is stored as. Each is transformed, all are concatenated along
# dimension 0 and viewed as the parameter's shape.
Layout = dict[str, tuple[Part, ...]]


@dataclass(frozen=True)
class Family:
    """One `model_type`. `read` and `write` are inverse on the configurations that the family can hold.

    `keys` names, for a field of our configuration (`latent.kv_rank` for nested ones), the key of `config.json` that
    it comes from, so that errors speak of what stands in the file. `refuses(config)` gives the reason why the
    reference implementation takes no such shape although the keys could say it. `prefix` is what a checkpoint of the
    bare model, without its head, lacks in its tensors' names. `harmless` tells tensors that some writers add and that
    the model does not need; `head` is the name of an untied head.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    layout: Callable[[ModelConfig], Layout]
    refuses: Callable[[ModelConfig], str | None] = field(default=lambda config: None)
    prefix: str = "model."
    head: str = "lm_head.weight"
    harmless: Callable[[str, ModelConfig], bool] = field(
        default=lambda name, config: name.endswith(".rotary_emb.inv_freq")
    )
