"""A trained model and its optimizer, saved alone, loaded and saved by two processes, loaded alone: bit for bit."""

import pytest
import torch
from forked_processes import two
from torch import nn
from torch.distributed.tensor import DTensor

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.checkpoint import Checkpoints
from gristmill.train.config import TrainingConfig
from gristmill.train.optimizers.build import build_optimizer
from gristmill.train.optimizers.state import export_state, import_state, init_state
from gristmill.train.parallel.data_parallel import parallelize
from gristmill.train.parallel.mesh import build_mesh
from gristmill.train.parallel.processes import Processes, alone

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
SHAPE = ModelConfig(
    vocab_size=33, hidden_size=24, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=8, intermediate_size=40,
    max_seq_len=32,
)  # fmt: skip
FEW = [("adamw", "zero1"), ("adam8bit", "zero3"), ("muon", "zero2")]
ALL = [(name, kind) for name in ("adamw", "muon", "adam8bit", "adafactor") for kind in ("ddp", "zero1", "zero3")]


class Objective(nn.Module):
    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.model(tokens_BT).float().square().sum()


class Run:
    """A model, its optimizer, and the tensors that a checkpoint holds."""

    def __init__(self, processes: Processes, name: str, kind: str) -> None:
        config = TrainingConfig(steps=2, batch_size=2, learning_rate=0.01, optimizer=name, parallel={"data": kind})
        self.model = Decoder(SHAPE).init_weights(3)
        mesh = build_mesh(processes, config.parallel)
        self.trainee = parallelize(Objective(self.model), config, mesh, torch.device("cpu"), "fp32")
        group = None if mesh is None else mesh.get_group("dp")
        self.optimizer = build_optimizer(self.model, config, process_group=group, zero_group=self.trainee.zero_group)
        self.names = {parameter: name for name, parameter in self.trainee.named_parameters()}

    def learn(self) -> None:
        for step in range(2):
            tokens = torch.randint(33, (2, 8), generator=torch.Generator().manual_seed(step))
            self.trainee.module(tokens).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def tensors(self) -> dict[str, torch.Tensor]:
        init_state(self.optimizer)
        state = {f"optimizer/{name}": tensor for name, tensor in export_state(self.optimizer, self.names).items()}
        return {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()} | state

    def load(self, checkpoints: Checkpoints) -> None:
        tensors, _ = checkpoints.load_latest(self.tensors)
        state = {
            name.removeprefix("optimizer/"): tensor for name, tensor in tensors.items() if name.startswith("optimizer/")
        }
        import_state(self.optimizer, self.names, state)


@pytest.mark.parametrize(
    ("name", "kind"),
    [pair if pair in FEW else pytest.param(*pair, marks=pytest.mark.slow) for pair in dict.fromkeys(FEW + ALL)],
)
def test_a_trained_state_goes_to_two_processes_and_back(tmp_path, name, kind):
    first = Run(alone(), name, kind)
    first.learn()
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    made = Checkpoints(tmp_path / "one", 1, 1, False, alone())
    made.check_writable()
    made.save(2, saved, {})

    def work(processes: Processes) -> None:
        run = Run(processes, name, kind)
        run.load(Checkpoints(tmp_path / "one", 1, 1, False, processes))
        if kind == "zero3":
            assert all(isinstance(parameter, DTensor) for parameter in run.model.parameters())
        with Checkpoints(tmp_path / "two", 1, 1, True, processes) as again:
            again.check_writable()
            again.save(2, run.tensors(), {})

    assert two(tmp_path, work) == [0, 0]
    last = Run(alone(), name, kind)
    last.load(Checkpoints(tmp_path / "two", 1, 1, False, alone()))
    loaded = last.tensors()
    assert loaded.keys() == saved.keys()
    assert [key for key in saved if not torch.equal(loaded[key], saved[key])] == []
