"""The planner's question of a fleet, handed to the simulator."""

from __future__ import annotations

from ..errors import GristmillError
from ..plan.device import device
from ..plan.layouts import Layout
from .planner_fields import fields
from .planner_form import Answer, Inputs, Question
from .planner_serving import cache_type, seconds


def fleet(inputs: Inputs) -> Answer:
    from ..capacity.answer import Fleet, plan_fleet, start_seconds
    from ..capacity.fleet import Autoscaling
    from ..capacity.report import Objective
    from ..capacity.traffic import Lengths, Traffic, drawn

    config, prefix, spread = inputs["model"], inputs["prefix_tokens"], inputs["length_spread"]
    if inputs["replicas"] is None and inputs["ttft"] is None and inputs["tpot"] is None:
        raise GristmillError("ttft, tpot or a number of replicas is needed: what is the fleet to keep?")
    longest = max((config.max_seq_len - 1) // 2, 1)
    arrivals = drawn(
        Traffic(
            inputs["rate"],
            inputs["requests"],
            Lengths(inputs["prompt_tokens"], spread, max(longest - prefix, 1)),
            Lengths(inputs["output_tokens"], spread, longest),
            inputs["process"],
            inputs["day_seconds"],
            inputs["prefix_share"] if prefix else 0.0,
            prefix,
            inputs["prefix_groups"],
        ),
        inputs["seed"],
    )
    layout, scaling = Layout(tensor=inputs["tensor"]), None
    if inputs["autoscale"] is not None:
        start = start_seconds(config, inputs["weights"], layout) if inputs["start"] is None else inputs["start"]
        scaling = Autoscaling(
            inputs["autoscale"], inputs["least"], inputs["most"], inputs["look"], start, inputs["cooldown"]
        )
        scaling.check()
    asked = Fleet(
        objective=Objective(seconds(inputs["ttft"]), seconds(inputs["tpot"])),
        percent=inputs["percentile"],
        replicas=inputs["replicas"],
        router=inputs["router"],
        overhead_seconds=inputs["overhead"],
        autoscaling=scaling,
        weights=inputs["weights"],
        kv=cache_type(inputs, "weights"),
        layout=layout,
        max_num_seqs=inputs["max_num_seqs"],
        max_num_batched_tokens=inputs["max_num_batched_tokens"],
    )
    answer = plan_fleet(config, device(inputs["device"]), arrivals, asked)
    return Answer(tuple(answer.quantities), tuple(answer.plots), tuple(answer.sentences))


FLEET = (
    Question(
        "fleet", "Fleet", "How many devices some traffic takes at a service level: a simulation of the engine's own "
        "scheduler on modelled devices.",
        fields("model", "device", "served", "rate", "prompt_tokens", "output_tokens", "requests", "ttft", "tpot",
               "percentile", "autoscale", ttft=0.5, tpot=0.05),
        fleet,
        more=fields("set", "kv", "tensor", "process", "day_seconds", "length_spread", "prefix_tokens", "prefix_share",
                    "prefix_groups", "replicas", "router", "overhead", "least", "most", "look", "cooldown", "start",
                    "max_num_seqs", "max_num_batched_tokens", "seed"),
        slow=True,
    ),
)  # fmt: skip
