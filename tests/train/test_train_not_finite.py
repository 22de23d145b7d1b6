"""Two processes, one of whose batches gives numbers that are not finite: both stop, with the same sentence."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked_processes import two
from torch import Tensor

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.config import TrainingConfig
from gristmill.train.data import WHOLE, Shard, TokenBatch
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss
from gristmill.train.parallel.processes import Processes

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SHAPE = ModelConfig(vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                    intermediate_size=24, max_seq_len=16)  # fmt: skip


def batch_at(step: int, shard: Shard = WHOLE) -> TokenBatch:
    ids = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(step))
    rows = slice(shard.rows(4).start, shard.rows(4).stop)
    return TokenBatch(ids[rows, :-1], ids[rows, 1:], torch.ones(len(ids[rows]), 8))


@dataclass(frozen=True)
class Poisoned:
    """The loss, but that one process gives something else: `what` is "loss", "output" or "gradient"."""

    rank: int
    what: str

    def __call__(self, model: Decoder, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, sums = next_token_loss(model, batch)
        if self.rank == 0:
            return total, sums
        if self.what == "loss":
            return total * torch.nan, sums
        return total + (total - total.detach()).abs().sqrt(), sums  # 0, whose slope is infinite


def poison_an_output(model: Decoder) -> None:
    model.blocks[0].register_forward_hook(lambda module, inputs, output: output * torch.nan)


CASES = {
    "loss": "the loss in process 1 is not finite at step",
    "output": "the output of blocks.0 in process 1 is not finite at step",
    "gradient": "the gradient of the output of ",
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("data", ["ddp", "zero3"])
def test_what_one_process_alone_finds_all_say(tmp_path: Path, data: str, what: str) -> None:
    config = TrainingConfig.model_validate({
        "steps": 12, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.01, "precision": "fp32",
        "device": "cpu", "log_every": 1, "parallel": {"data": data},
    })  # fmt: skip

    def work(processes: Processes) -> None:
        torch.set_num_threads(1)
        model = Decoder(SHAPE).init_weights(1)
        if what == "output" and processes.rank == 1:
            poison_an_output(model)
        run = StageRun(tmp_path / "out", tmp_path / "scratch", {}, 1, StageLog(EventLog(None), "base"))
        loss = Poisoned(0 if what == "output" else processes.rank, what)
        try:
            train(model, batch_at, loss, config, run)
        except GristmillError as error:
            (tmp_path / f"sentence-{processes.rank}").write_text(str(error))

    (tmp_path / "scratch").mkdir()
    assert two(tmp_path, work) == [0, 0]
    first, second = ((tmp_path / f"sentence-{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith(CASES[what]), first
    assert " in process 1 is not finite" in first
