"""Models, gradients and guards that the tests of optimizers share."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.config import TrainingConfig
from gristmill.train.optimizers import build_optimizer

# Every kind of state is in it: matrices of several shapes, fused ones, vectors; and what 8 bits keep in full.
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "max_seq_len": 16,
}
EXPERTS = {"experts": {"num_experts": 3, "top_k": 1, "intermediate_size": 32}}
OPTIMIZERS = ["adamw", "muon", "adam8bit", "adafactor"]


def tiny(seed=1, **changes):
    return Decoder(ModelConfig(**SHAPE | changes)).init_weights(seed)


def config(optimizer="adamw", **changes):
    fields = {"steps": 10, "batch_size": 1, "learning_rate": 0.01, "optimizer": optimizer, "precision": "fp32"}
    return TrainingConfig(**fields | changes)


def optimizer_of(model, name="adamw", *, zero_group=None, process_group=None, mup_base_width=None, **changes):
    return build_optimizer(
        model,
        config(name, **changes),
        mup_base_width=mup_base_width,
        zero_group=zero_group,
        process_group=process_group,
    )


def give_gradients(model, step=0, scale=1.0):
    """Gradients that are a function of the step and of the parameter's name, of very unlike sizes."""
    for number, (_, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(1000 * step + number)
        sizes = torch.randn(parameter.shape, generator=generator).exp()
        gradient = torch.randn(parameter.shape, generator=generator) * sizes * scale
        parameter.grad = gradient.to(parameter.device, parameter.dtype)


def names_of(model):
    return {parameter: name for name, parameter in model.named_parameters()}


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class NoHostReads(TorchDispatchMode):
    """Fails where the host asks for a number on the device or waits for a size that depends on one."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.WAITING, f"{function} waits for the device"
        return function(*args, **kwargs or {})
