"""`gristmill bench model`: one forward and one backward pass of the plain `Decoder` beside transformers and litgpt.

All have the same shape and see the same tokens; transformers has the same weights too, and its logits are compared.
The loss is cross-entropy over all tokens. A time is the median of several repeats, after two that are not counted; the
models take turns, one at a time in memory.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill import hardware
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.weights.families import family_of, write_config
from gristmill.weights.hf_config import DTYPES
from gristmill.weights.layout import split_tensors

PEERS = ("transformers", "litgpt")
Say = Callable[[str], None]
Logits = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One measured pass: milliseconds, and tokens a second."""

    name: str
    mode: str
    compiled: bool
    milliseconds: float
    tokens_per_second: int
    note: str = ""


def bench_model(
    shape: str,
    batch: int,
    length: int,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    repeats: int = 10,
    layers: int | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure, and return the rows with what they were measured on.

    `shape` is a preset's name, `layers` cuts it short, `batch` x `length` are the tokens of a pass. GristmillError for
    a shape, type or device that is not there.
    """
    config = preset(shape)
    if layers is not None:
        config = config.model_copy(update={"num_layers": layers})
    if dtype not in DTYPES:
        raise GristmillError(f"--dtype {dtype}: the types are {', '.join(DTYPES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise GristmillError("--device cuda: torch sees no GPU here")
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length + 1), device=device)
    rows: list[Row] = []
    expected: Tensor | None = None
    installed = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    for name in ("gristmill", *installed):
        for compile_it in (False, True) if compiled else (False,):
            say(f"{name}{', compiled' if compile_it else ''}")
            model, logits = _build(name, config, DTYPES[dtype], device)
            note = ""
            if not compile_it and name != "litgpt":
                with torch.no_grad():
                    found = logits(model, ids[:1, :64]).float()
                if expected is None:
                    expected = found
                else:
                    note = f"logits differ by at most {float((found - expected).abs().max()):.1e}"
            rows += _measure(name, model, logits, ids, compile_it, repeats, note)
            del model
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    return {
        "rows": [asdict(row) for row in rows],
        "shape": shape,
        "parameters": config.num_parameters,
        "batch": batch,
        "length": length,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "repeats": repeats,
        "hardware": hardware.describe(),
        "versions": versions("torch", *installed),
        "absent": [name for name in PEERS if name not in installed],
    }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [
        f"{report['shape']}, {report['parameters']:,} parameters, {report['batch']} x {report['length']} tokens, "
        f"{report['dtype']}, {report['device']}; median of {report['repeats']}",
        "",
        f"{'model':<16}{'pass':<20}{'compiled':<10}{'ms':>10}{'tokens/s':>12}  note",
    ]
    for row in report["rows"]:
        compiled = "yes" if row["compiled"] else "no"
        lines.append(
            f"{row['name']:<16}{row['mode']:<20}{compiled:<10}{row['milliseconds']:>10.2f}"
            f"{row['tokens_per_second']:>12,}  {row['note']}".rstrip()
        )
    return "\n".join([*lines, *(f"{name} is not installed" for name in report["absent"])])


def _measure(
    name: str, model: nn.Module, logits: Logits, ids: Tensor, compile_it: bool, repeats: int, note: str
) -> list[Row]:
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss() -> Tensor:
        return F.cross_entropy(logits(model, inputs).flatten(0, 1), targets.flatten())

    run = torch.compile(loss) if compile_it else loss

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        run().backward()

    tokens = inputs.numel()
    rows = []
    for mode, step in (("forward", forward), ("forward + backward", both)):
        seconds = _median_seconds(step, repeats, ids.device.type == "cuda")
        rows.append(Row(name, mode, compile_it, round(seconds * 1e3, 3), round(tokens / seconds), note))
        note = ""
    return rows


def _median_seconds(step: Callable[[], None], repeats: int, cuda: bool) -> float:
    taken = []
    for turn in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        started = perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        if turn >= 2:
            taken.append(perf_counter() - started)
    return statistics.median(taken)


def _build(name: str, config: ModelConfig, dtype: torch.dtype, device: str) -> tuple[nn.Module, Logits]:
    """A model in training mode and how its logits are had."""
    if name == "litgpt":
        return litgpt_model(config).to(device, dtype), lambda model, ids: model(ids)
    ours = Decoder(config).init_weights(0)
    if name == "gristmill":
        return ours.to(device, dtype), lambda model, ids: model(ids)
    return transformers_model(ours).to(device, dtype), lambda model, ids: model(input_ids=ids, use_cache=False).logits


def transformers_model(ours: Decoder) -> nn.Module:
    """transformers' model of the same family, with the same weights."""
    import transformers

    settings = write_config(family_of(ours.config), ours.config)
    theirs: nn.Module = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**settings), attn_implementation="sdpa"
    )
    problems = theirs.load_state_dict(dict(split_tensors(ours)), strict=False)
    assert not problems.unexpected_keys
    assert set(problems.missing_keys) <= {"lm_head.weight"}
    return theirs.train()


def litgpt_model(config: ModelConfig) -> nn.Module:
    """litgpt's model of a Llama-like shape, with random weights of its own making."""
    from litgpt.config import Config
    from litgpt.model import GPT

    model: nn.Module = GPT(
        Config(
            name="bench",
            block_size=config.max_seq_len,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_embd=config.hidden_size,
            n_query_groups=config.num_kv_heads,
            head_size=config.head_dim,
            intermediate_size=config.intermediate_size,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=config.norm_eps,
            norm_qk=config.qk_norm == "head",
            mlp_class_name="LLaMAMLP",
            rope_base=int(config.rope_theta),
        )
    )
    model.apply(model._init_weights)  # type: ignore[arg-type]
    if config.tie_embeddings:
        model.lm_head.weight = model.transformer.wte.weight  # type: ignore[union-attr]
    return model


def versions(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
