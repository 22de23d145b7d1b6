"""The planner's questions of serving a model, handed to the public functions of plan/."""

from __future__ import annotations

import math

from ..plan.device import device
from ..plan.layouts import Layout
from ..plan.roofline_model import ModelRoofline, plan_roofline, roofline_plots, roofline_sentences
from ..plan.serve import Serving, Speculation, Traffic, plan_serve, serving_plots, serving_sentences
from ..plan.serve_memory import kv_bits, weight_bits
from .planner_fields import fields
from .planner_form import Answer, Inputs, Question


def cache_type(inputs: Inputs, weights: str) -> str:
    """The type of keys and values: that of the form, else 32 bits beside weights of 32, and 16 beside all others."""
    return str(inputs["kv"] or ("fp32" if inputs[weights] == "fp32" else "bf16"))


def seconds(value: float | None) -> float:
    """An objective; without one any time will do."""
    return math.inf if value is None else value


def roofline(inputs: Inputs) -> Answer:
    config, batch = inputs["model"], inputs["batch"]
    length = inputs["seq_len"] or min(2048, config.max_seq_len)
    cache = kv_bits(cache_type(inputs, "dtype"), config)
    model = ModelRoofline(config, device(inputs["device"]), weight_bits(inputs["dtype"]), cache)
    known = {"B": batch, "s": length, "N": model.matrices, "W": model.weight_bytes(batch), "KV": model.kv_bytes(length)}
    return Answer(
        tuple(plan_roofline(model, batch, length)),
        tuple(roofline_plots(model, batch, length)),
        tuple(roofline_sentences(model, length)),
        symbols=known,
    )


def serve(inputs: Inputs) -> Answer:
    config, on = inputs["model"], device(inputs["device"])
    serving = Serving(
        traffic=Traffic(
            inputs["prompt_tokens"],
            inputs["output_tokens"],
            inputs["cached_prompt_share"],
            inputs["length_spread"],
            inputs["step_tokens"],
        ),
        concurrency=inputs["concurrency"],
        weights=inputs["weights"],
        kv=inputs["kv"],
        layout=Layout(inputs["tensor"], inputs["pipeline"], inputs["data"], inputs["expert"]),
        ttft_seconds=seconds(inputs["ttft"]),
        tpot_seconds=seconds(inputs["tpot"]),
        speculation=Speculation(inputs["draft_tokens"], inputs["acceptance"], inputs["draft_cost"]),
        utilization=inputs["memory_utilization"],
        read_bytes_per_s=inputs["read"],
    )
    return Answer(
        tuple(plan_serve(config, on, serving)),
        tuple(serving_plots(config, on, serving)),
        tuple(serving_sentences(config, on, serving)),
        symbols={"O": inputs["output_tokens"], "t": inputs["tensor"], "p": inputs["pipeline"]},
    )


SERVING = (
    Question(
        "roofline", "Roofline", "Ridge, arithmetic intensity and least times of prefill and decoding on a device.",
        fields("model", "device", "dtype", "kv", "batch", "context"), roofline, more=fields("set"),
    ),
    Question(
        "serve", "Serving", "Memory, sequences at once, times and throughput of a server, and what would change them.",
        fields("model", "device", "served", "kv", "prompt_tokens", "output_tokens", "concurrency", "tensor", "ttft",
               "tpot"),
        serve,
        more=fields("set", "pipeline", "data", "expert", "cached_prompt_share", "length_spread", "step_tokens",
                    "draft_tokens", "acceptance", "draft_cost", "memory_utilization", "read"),
    ),
)  # fmt: skip
