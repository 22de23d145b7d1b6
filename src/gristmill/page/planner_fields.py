"""The inputs that the planner's questions share, each with its one help text. A question may change a default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .planner_form import Field

DTYPES = ("fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
SERVED = ("fp32", "bf16", "fp8", "int8", "int4", "nf4")
CACHES = ("", "fp32", "bf16", "fp8", "int8")

_COMMON = (
    Field("model", "Model", "A preset's name.", "model", "llama-3-8b", option=""),
    Field("set", "Changes to it", "Fields of the shape, for example num_kv_heads=4.", "words", option="--set"),
    Field("seq_len", "Sequence length", "Empty: as long as the model allows.", "whole", unit="tokens"),
    Field("dtype", "Type", "Of weights and cache.", "choice", "bf16", choices=DTYPES),
    Field("device", "Device", "Its name; `here` once `gristmill plan calibrate` has measured this one.", "device",
          "h100-sxm"),
)  # fmt: skip

_TRAINING = (
    Field("micro_batch_size", "Micro-batch", "Sequences per forward pass and process.", "whole", 1, "sequences"),
    Field("accumulate", "Accumulate", "A step sums the gradients of several forward passes.", "flag", False),
    Field("precision", "Precision", "Type of the products.", "choice", "bf16",
          choices=("fp32", "bf16", "fp16", "fp8")),
    Field("weights", "Weights", "Type of weights, gradients and optimizer state.", "choice", "fp32",
          choices=("fp32", "bf16")),
    Field("optimizer", "Optimizer", "Whose state is kept.", "choice", "adamw",
          choices=("adamw", "muon", "adam8bit", "adafactor")),
    Field("activation_checkpointing", "Checkpointing", "What backward computes again.", "choice", "none",
          choices=("none", "sqrt", "block", "selective")),
    Field("offload", "Offload", "Where optimizer state lies.", "choice", "none", choices=("none", "cpu", "disk")),
    Field("parallel", "Data parallelism", "What processes share out.", "choice", "ddp",
          choices=("ddp", "zero1", "zero2", "zero3")),
    Field("processes", "Processes", "One on each device.", "whole", 1),
    Field("tokens", "Tokens to train on", "Empty: 20 per parameter.", "number", unit="tokens"),
    Field("batch_tokens", "Tokens a step", "Over all processes; empty: one pass.", "whole", unit="tokens"),
    Field("accelerator", "Device", "The device of each process.", "device", "h100-sxm"),
    Field("mfu", "MFU", "Share of the devices' peak that training reaches in all; empty: what was measured on one "
          "device, less bubble and traffic.", "number", most=1),
    Field("interleaved", "Interleaved", "Chunks of layers in each stage of a pipeline.", "whole", 1),
    Field("corpus_tokens", "Corpus", "Tokens there are to train on.", "number", unit="tokens"),
    Field("inference_tokens", "Use", "Tokens that the model will read and write in its life.", "number", 0.0, "tokens",
          least=0),
    Field("save_rate", "Saving", "How fast a node writes a checkpoint; empty: as measured.", "number", unit="byte/s"),
    Field("async_saves", "Asynchronous saves", "Checkpoints are written beside training.", "flag", False),
    Field("device_mtbf_hours", "Between failures", "Of one device; empty: as published of large runs.", "number",
          unit="h"),
)  # fmt: skip

_FINETUNING = (
    Field("fitted", "Device", "That it is to fit; empty: any GPU.", "device"),
    Field("micro_batches", "Micro-batches", "Of a step; a pipeline keeps several.", "whole", 1),
    Field("sequence_parallel", "Sequence parallelism", "Tensor-parallel devices share out the tokens between layers.",
          "flag", True),
    Field("lora_rank", "LoRA rank", "Adapters beside a frozen model; empty: the whole model is trained.", "whole"),
    Field("targets", "Adapters on", "Matrices, for example q,v or q,k,v,output,gate,up,down; empty: as usual.",
          "text"),
    Field("base", "Frozen model", "What it is kept as beside adapters (nf4: QLoRA).", "choice",
          choices=("", "fp32", "bf16", "int8", "nf4"), empty="bf16"),
    Field("method", "Models at once", "One, or those of an alignment method.", "choice", "full",
          choices=("full", "dpo", "grpo", "ppo")),
    Field("rollouts", "Rollouts", "Sequences that a replica writes at once; empty: a micro-batch.", "whole"),
    Field("disk_bandwidth", "Drive", "That states lie on with offload disk; empty: 7 GB/s.", "number", unit="byte/s"),
)  # fmt: skip

_SERVING = (
    Field("prompt_tokens", "Prompt", "Its length in the mean.", "whole", 512, "tokens"),
    Field("output_tokens", "Reply", "Its length in the mean.", "whole", 256, "tokens"),
    Field("concurrency", "Requests at once", "Empty: as many as is best.", "whole"),
    Field("batch", "Batch", "Sequences that decode at once, or prompts that are read.", "whole", 32, "sequences"),
    Field("context", "Context", "Of a prompt, or behind a decoding sequence; empty: 2,048.", "whole", unit="tokens"),
    Field("served", "Weights", "Format of the blocks' matrices.", "choice", "bf16", choices=SERVED),
    Field("kv", "Cache", "Type of keys and values; empty: bf16, or fp32 beside such weights.", "choice",
          choices=CACHES),
    Field("tensor", "Tensor parallelism", "Devices that share each layer.", "whole", 1, "devices"),
    Field("pipeline", "Pipeline", "Stages of layers.", "whole", 1, "stages"),
    Field("data", "Replicas", "Each of tensor * pipeline devices.", "whole", 1),
    Field("expert", "Expert parallelism", "Devices that share a layer's experts.", "whole", 1, "devices"),
    Field("cached_prompt_share", "Cached prompts", "Share of a prompt that begins like others.", "number", 0.0,
          least=0, most=1),
    Field("length_spread", "Spread of lengths", "Standard deviation over the mean.", "number", 1.0, least=0),
    Field("step_tokens", "Tokens of a step", "The most that are computed at once.", "whole", 8192, "tokens"),
    Field("ttft", "First token within", "Objective (TTFT).", "number", unit="s"),
    Field("tpot", "Further tokens within", "Objective a token (TPOT).", "number", unit="s"),
    Field("draft_tokens", "Guessed ahead", "Tokens a step of speculative decoding.", "whole", 4, "tokens"),
    Field("acceptance", "Guesses right", "Share of them.", "number", 0.7, least=0, most=1),
    Field("draft_cost", "Cost of a guess", "In steps of the model.", "number", 0.0, least=0),
    Field("memory_utilization", "Memory for the cache", "Share of what is free.", "number", 0.9, most=1),
    Field("read", "Disk", "How fast weights are read.", "number", 5e9, "byte/s"),
)  # fmt: skip

_FLEET = (
    Field("rate", "Arrivals", "In the mean.", "number", 10.0, "requests/s"),
    Field("requests", "Simulated", "Longer traffic takes longer to simulate.", "whole", 2000, "requests", most=50_000),
    Field("process", "Arrivals come", "How they are spread over time.", "choice", "poisson",
          choices=("poisson", "constant", "bursts", "diurnal")),
    Field("day_seconds", "A day", "Of diurnal arrivals.", "number", 86_400.0, "s"),
    Field("prefix_tokens", "Common beginning", "Tokens that prompts share.", "whole", 0, "tokens", least=0),
    Field("prefix_share", "Share with one", "Requests that have a common beginning.", "number", 1.0, least=0, most=1),
    Field("prefix_groups", "Different ones", "How many common beginnings there are.", "whole", 1),
    Field("percentile", "Percentile", "Of the requests, those that must keep the objective.", "number", 99.0, "%",
          most=100),
    Field("replicas", "Replicas", "Empty: the fewest that keep the objective.", "whole"),
    Field("router", "Router", "Which replica a request goes to.", "choice", "least-loaded",
          choices=("least-loaded", "round-robin", "prefix")),
    Field("overhead", "Overhead", "Before a request reaches a replica.", "number", 0.0, "s", least=0),
    Field("autoscale", "Autoscaling", "Requests that each replica is to have; empty: no autoscaling.", "number"),
    Field("least", "Fewest replicas", "Of autoscaling; 0 scales to zero.", "whole", 1, least=0),
    Field("most", "Most replicas", "Of autoscaling.", "whole", 64),
    Field("look", "Looks every", "Of autoscaling.", "number", 15.0, "s"),
    Field("cooldown", "Kept idle", "Before a replica is let go.", "number", 300.0, "s", least=0),
    Field("start", "Start", "Of a replica; empty: 5 s and reading its weights at 5 GB/s.", "number", unit="s",
          least=0),
    Field("max_num_seqs", "Slots", "Requests at once in a replica.", "whole", 256),
    Field("max_num_batched_tokens", "Tokens of a step", "The most that are computed at once.", "whole", 8192,
          "tokens"),
    Field("seed", "Seed", "Of the arrivals.", "whole", 0, least=0),
)  # fmt: skip

_COST = (
    Field("slo_ttft", "First token within", "Objective (TTFT), mean.", "number", 0.5, "s"),
    Field("slo_tpot", "Further tokens within", "Objective a token (TPOT), mean.", "number", 0.05, "s"),
    Field("formats", "Weights", "Formats to try, for example bf16,fp8,int4.", "text", "bf16"),
    Field("caches", "Cache", "Types of keys and values to try, for example bf16,fp8.", "text", "bf16"),
    Field("one_format", "Weights", "Format of the blocks' matrices.", "choice", "bf16", choices=SERVED),
    Field("one_cache", "Cache", "Type of keys and values.", "choice", "bf16", choices=CACHES[1:]),
    Field("busy", "Busy", "Share of the hours paid for with this traffic.", "number", 1.0, most=1),
    Field("max_devices", "Most devices", "That share a replica.", "choice", "8", choices=("1", "2", "4", "8")),
    Field("only_device", "Only these devices", "Names with spaces between them; empty: all known ones.", "words"),
    Field("price", "Prices", "Own ones with spaces between them, as h100-sxm=2,3: USD an hour.", "words"),
    Field("cheapest_tensor", "Tensor parallelism", "Devices that share a replica; empty: the cheapest number.",
          "whole", unit="devices"),
    Field("requests_per_day", "Requests", "In the mean.", "number", 200_000.0, "a day", stated=True),
    Field("api_input_usd", "API, prompts", "Its price of a million tokens of prompts.", "number", 0.2, "USD", least=0,
          stated=True),
    Field("api_output_usd", "API, replies", "Its price of a million tokens of replies.", "number", 0.6, "USD",
          least=0, stated=True),
    Field("api_cached_usd", "API, cached", "Of cached tokens of prompts; empty: as others.", "number", unit="USD",
          least=0),
    Field("slice", "Slices of the traffic", "With the discounts that hold for each, for example "
          "chat:60%:cache=-30% bulk:40%:batch=-50%.", "words"),
    Field("usd_per_hour", "Price of a device", "LOW,HIGH an hour; empty: the known price.", "text", unit="USD"),
    Field("utilization", "Load", "Mean load of a replica over its most; the rest is for peaks.", "number", 0.5, most=1),
    Field("hours_per_day", "Hours a day", "That devices run and are paid for.", "number", 24.0, "h", most=24),
    Field("non_gpu_share", "Other costs", "Share of the whole own cost that is not devices.", "number", 0.0, least=0),
    Field("marginal_usd", "Cost a token", "What a million own tokens cost beside the hours.", "number", 0.0, "USD",
          least=0),
)  # fmt: skip

_LAYOUT = (
    Field("devices", "Devices", "How many there are; all are used.", "whole", 8),
    Field("global_batch_tokens", "Tokens a step", "Over all devices; empty: 4 Mi.", "whole", unit="tokens"),
    Field("devices_per_node", "Devices in a node", "Empty: the device's usual number.", "whole"),
    Field("compute_share", "MFU", "Share of its peak that a device reaches while it computes; empty: measured.",
          "number", most=1),
    Field("fixed_tensor", "Tensor", "Only layouts with this one.", "whole"),
    Field("fixed_pipeline", "Pipeline", "Only with this many stages.", "whole"),
    Field("fixed_data", "Data", "Only with this many replicas.", "whole"),
    Field("fixed_expert", "Expert", "Only with experts shared by so many.", "whole"),
    Field("zero", "ZeRO", "Only with this stage.", "whole", least=0, most=3),
)  # fmt: skip

_GUIDE = (
    Field("only", "Verdict", "Rows of this verdict alone; failed: those that miss what the table expects.", "choice",
          choices=("", "agrees", "unit", "off", "contradicts", "wrong", "failed"), empty="all"),
    Field("id", "Rows", "Ids, or A* for those that begin so, with spaces between them.", "words"),
)  # fmt: skip

_TABLES = (_COMMON, _TRAINING, _FINETUNING, _SERVING, _FLEET, _COST, _LAYOUT, _GUIDE)
FIELDS = {field.name: field for table in _TABLES for field in table}
# Inputs that one question explains otherwise than another: what the planner and its commands call them.
_RENAMED = {
    "context": "seq_len", "served": "weights", "formats": "weights", "one_format": "weights", "caches": "kv",
    "one_cache": "kv", "slo_ttft": "ttft", "slo_tpot": "tpot", "only_device": "device", "fitted": "device",
    "cheapest_tensor": "tensor",
    "compute_share": "mfu", "fixed_tensor": "tensor", "fixed_pipeline": "pipeline", "fixed_data": "data",
    "fixed_expert": "expert",
}  # fmt: skip


def fields(*keys: str, **defaults: Any) -> tuple[Field, ...]:
    """The fields of these keys, with other defaults where they are given."""
    chosen = []
    for key in keys:
        field = replace(FIELDS[key], name=_RENAMED.get(key, key))
        chosen.append(_begun(field, defaults[key]) if key in defaults else field)
    return tuple(chosen)


def _begun(field: Field, default: Any) -> Field:
    return replace(field, default=default, optional=field.default is None, stated=True)
