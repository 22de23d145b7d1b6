"""Rows of the guide's table about bytes: the cache, weights, what fits, states of training."""

from __future__ import annotations

from . import capacity_limits, finetune, kv_cache, training
from .activations import checkpointing_saving_fraction, recompute_overhead_fraction
from .guide_inputs import Answer, Formula, Inputs, shown
from .guide_model import shape
from .parameters import weight_bytes

CACHE = ("n_layers", "n_kv_heads", "head_dim")
NEVER = 10**9  # devices, sequences and the like: more than there are


def kv_bytes_per_token(inputs: Inputs) -> Answer:
    """Of a row's model, or as the row gives it."""
    if inputs.has("kv_bytes_per_token"):
        size = inputs.number("kv_bytes_per_token")
        return Answer(size, shown(size))
    config = shape(inputs, CACHE)
    each = inputs.number("kv_bytes_per_elem")
    size = kv_cache.kv_cache_bytes_per_token(config, each)
    if config.latent is not None:
        widths = f"({config.latent.kv_rank} + {config.latent.rope_head_dim})"
        return Answer(size, f"{config.num_layers} * {widths} * {shown(each)}")
    return Answer(size, f"2 * {config.num_layers} * {config.num_kv_heads} * {config.head_dim} * {shown(each)}")


def kv_bytes_per_sequence(inputs: Inputs) -> Answer:
    """Per token, times seq_len."""
    per_token, length = kv_bytes_per_token(inputs), inputs.count("seq_len")
    return Answer(per_token.value * length, f"{per_token.formula} * {length:,}")


def has_cache(inputs: Inputs) -> bool:
    """Whether a row speaks of keys and values at all: where it does not they count as nothing."""
    return inputs.has("seq_len") or inputs.has("kv_bytes_per_token") or any(inputs.has(name) for name in CACHE)


def weights(inputs: Inputs) -> Answer:
    """`weight_bytes`, or what parameters and bits (or bytes) of each come to."""
    if not inputs.has("weight_bytes"):
        if inputs.has("bits_per_param"):
            return _weight_bytes(inputs)
        if inputs.has("weight_bytes_per_param"):
            params, each = inputs.number("params"), inputs.number("weight_bytes_per_param")
            return Answer(weight_bytes(params, 8 * each), f"{shown(params)} * {shown(each)}")
    size = inputs.number("weight_bytes")
    return Answer(size, shown(size))


def _weight_bytes(inputs: Inputs) -> Answer:
    params, bits = inputs.number("params"), inputs.number("bits_per_param")
    return Answer(weight_bytes(params, bits), f"{shown(params)} * {shown(bits)} / 8")


def _kv_cache_bytes(inputs: Inputs) -> Answer:
    if inputs.has("kv_bytes_per_token"):
        return _times(kv_bytes_per_sequence(inputs), inputs.count("batch", 1))
    config, each, length = shape(inputs, CACHE), inputs.number("kv_bytes_per_elem"), inputs.count("seq_len")
    batch = inputs.count("batch", 1)
    size = kv_cache.kv_cache_bytes(config, length, each, batch, drop_beyond_window=False)
    return Answer(size, _times(kv_bytes_per_sequence(inputs), batch).formula)


def _times(one: Answer, batch: int) -> Answer:
    return Answer(one.value * batch, f"{one.formula} * {batch:,}" if batch > 1 else one.formula)


def _memory_fraction(inputs: Inputs) -> Answer:
    cache, memory = _kv_cache_bytes(inputs), inputs.number("memory_bytes")
    return Answer(
        capacity_limits.kv_memory_fraction(cache.value, memory), f"{cache.formula} / {shown(memory)}"
    )  # fmt: skip


def _kv_to_weights(inputs: Inputs) -> Answer:
    cache, whole = _kv_cache_bytes(inputs), weights(inputs)
    return Answer(cache.value / whole.value, f"{cache.formula} / ({whole.formula})")


def _gqa(inputs: Inputs) -> Answer:
    config = shape(inputs, ("n_heads", "n_kv_heads"))
    if config.latent is not None:
        return Answer(kv_cache.gqa_kv_reduction_factor(config), "heads * widths / latent widths")
    return Answer(kv_cache.gqa_kv_reduction_factor(config), f"{config.num_heads} / {config.num_kv_heads}")


def _budget(inputs: Inputs) -> Answer:
    memory, share = inputs.number("memory_bytes"), inputs.share("utilization", zero=False)
    whole, overhead = weights(inputs), inputs.number("overhead_bytes", 0, zero=True)
    left = capacity_limits.kv_budget_bytes(memory, share, whole.value, overhead)
    if not left:  # a row states the shortage too
        left = share * memory - whole.value - overhead
    return Answer(left, f"{shown(share)} * {shown(memory)} - {whole.formula} - {shown(overhead)}")


def _sequences(inputs: Inputs) -> Answer:
    if inputs.has("kv_budget_bytes"):
        size = inputs.number("kv_budget_bytes", zero=True)
        budget = Answer(size, shown(size))
    elif inputs.has("memory_bytes") or inputs.device_label() is not None:
        budget = _budget(inputs)
    else:
        raise inputs.refuse("kv_budget_bytes", "is missing, and so is 'memory_bytes', which stands for it")
    one = kv_bytes_per_sequence(inputs)
    number = capacity_limits.max_concurrent_sequences(budget.value, one.value)
    return Answer(number, f"floor(({budget.formula}) / ({one.formula}))")


def _rescaled(inputs: Inputs) -> Answer:
    number, old, new = inputs.number("sequences"), inputs.count("from_seq_len"), inputs.count("to_seq_len")
    return Answer(number * old / new, f"{shown(number)} * {old:,} / {new:,}")


def _devices(inputs: Inputs) -> tuple[float, float, float, str]:
    required, memory = inputs.number("required_bytes"), inputs.number("memory_bytes")
    share = inputs.share("utilization", zero=False)
    return required, memory, share, f"ceil({shown(required)} / ({shown(share)} * {shown(memory)}))"


def _min_gpus(inputs: Inputs) -> Answer:
    required, memory, share, formula = _devices(inputs)
    return Answer(capacity_limits.min_devices(required, memory, share), formula)


def _min_nodes(inputs: Inputs) -> Answer:
    required, memory, share, formula = _devices(inputs)
    each = inputs.count("gpus_per_node", most=NEVER)
    return Answer(capacity_limits.min_nodes(required, memory, each, share), f"ceil({formula} / {each})")


def _load(inputs: Inputs) -> Answer:
    whole, rate = weights(inputs), inputs.number("read_bytes_per_s")
    return Answer(capacity_limits.model_load_seconds(whole.value, rate), f"{whole.formula} / {shown(rate)}")


def _zero(stage: int) -> Formula:
    def of(inputs: Inputs) -> Answer:
        params, number = inputs.number("params"), inputs.count("n_gpus", most=NEVER)
        cut = inputs.number("optimizer_bytes_sharded", 12, zero=True)
        if cut > 12:
            raise inputs.refuse("optimizer_bytes_sharded", "must be at most the optimizer's 12 bytes a parameter")
        size = training.zero_bytes_per_process(params, number, stage, optimizer_sharded=cut)
        shared = (0, cut, cut + 2, cut + 4)[stage]
        text = f"({shown(16 - shared)} + {shown(shared)} / {number:,}) * {shown(params)}"
        return Answer(size, text if stage else f"16 * {shown(params)}")

    return Formula("byte", of)


def _adam(inputs: Inputs) -> Answer:
    parts = [inputs.number(name, zero=True) for name in ("weight", "gradient", "master", "momentum", "variance")]
    weight, gradient, master, momentum, variance = parts
    size = training.adam_bytes_per_param(weight, gradient, master, (momentum + variance) / 2)
    return Answer(size, " + ".join(shown(part) for part in parts))


def _optimizer(inputs: Inputs) -> Answer:
    parts = [inputs.number(name, zero=True) for name in ("master", "momentum", "variance")]
    return Answer(sum(parts), " + ".join(shown(part) for part in parts))


def _zero_traffic(inputs: Inputs) -> Answer:
    stage = inputs.count("stage", least=0, most=3)
    text = f"{3 if stage == 3 else 2} / 2; times all parameters that are sent, over plain data parallelism"
    return Answer(training.zero_communication_factor(stage), text)


def _optimizer_ratio(inputs: Inputs) -> Answer:
    state, weight = inputs.number("optimizer_bytes_per_param", zero=True), inputs.number("weight_bytes_per_param")
    return Answer(training.optimizer_to_weight_ratio(state, weight), f"{shown(state)} / {shown(weight)}")


def _lora(inputs: Inputs) -> Answer:
    layers, rank = inputs.count("n_layers", most=100_000), inputs.count("rank", most=NEVER)
    given = inputs.raw("targets")
    if not isinstance(given, list | tuple) or not given:
        raise inputs.refuse("targets", "must list the pairs (in, out) of the matrices of a layer")
    pairs = []
    for target in given:
        one = Inputs({"targets": target})
        one.numbers("targets", length=2)
        pairs.append([Inputs({"targets": side}).count("targets") for side in target])
    sizes = " + ".join(f"{into:,} + {out:,}" for into, out in pairs)
    return Answer(finetune.lora_params(layers, rank, pairs), f"{layers} * {rank} * ({sizes})")


def _lora_factor(inputs: Inputs) -> Answer:
    params, trained = inputs.number("params"), _lora(inputs)
    return Answer(finetune.lora_reduction_factor(params, trained.value), f"{shown(params)} / ({trained.formula})")


def _lora_memory(inputs: Inputs) -> Answer:
    params, trained = inputs.number("params"), inputs.number("trainable_params")
    full, frozen = inputs.number("full_bytes_per_param", 16), inputs.number("frozen_bytes_per_param", 2)
    whole = f"{shown(params)} * {shown(full)}"
    return Answer(
        finetune.lora_memory_reduction_factor(params, trained, full, frozen),
        f"{whole} / ({shown(params)} * {shown(frozen)} + {shown(trained)} * {shown(full)})",
    )


def _checkpointing(inputs: Inputs) -> Answer:
    layers = inputs.count("n_layers", least=4)  # fewer save nothing: 1 - 2 / sqrt(L) is not above 0
    return Answer(checkpointing_saving_fraction(layers), f"1 - 2 / sqrt({layers:,})")


def _recompute(inputs: Inputs) -> Answer:
    forward, backward = inputs.number("forward"), inputs.number("backward")
    share = recompute_overhead_fraction(forward, backward)
    return Answer(share, f"{shown(forward)} / ({shown(forward)} + {shown(backward)})")


def _alignment(inputs: Inputs) -> Answer:
    one, other = (
        (inputs.number(f"trainable_{side}", zero=True), inputs.number(f"frozen_{side}", zero=True)) for side in "ab"
    )
    each = inputs.number("trainable_bytes_per_param", 16), inputs.number("frozen_bytes_per_param", 2)
    if not sum(other):
        raise inputs.refuse("trainable_b", "and 'frozen_b' must not both be 0")
    texts = [f"({shown(t)} * {shown(each[0])} + {shown(f)} * {shown(each[1])})" for t, f in (one, other)]
    return Answer(finetune.alignment_memory_ratio(*one, *other, *each), " / ".join(texts))


FORMULAS: dict[str, Formula] = {
    "kv_bytes_per_token": Formula("byte/token", kv_bytes_per_token),
    "kv_cache_bytes": Formula("byte", _kv_cache_bytes),
    "kv_memory_fraction": Formula("1", _memory_fraction),
    "kv_to_weight_ratio": Formula("1", _kv_to_weights),
    "gqa_kv_reduction_factor": Formula("1", _gqa),
    "weight_bytes": Formula("byte", _weight_bytes),
    "kv_budget_bytes": Formula("byte", _budget),
    "max_concurrent_sequences": Formula("sequence", _sequences),
    "rescaled_sequences": Formula("sequence", _rescaled),
    "min_gpus": Formula("GPU", _min_gpus),
    "min_nodes": Formula("node", _min_nodes),
    "model_load_seconds": Formula("s", _load),
    **{f"zero_stage{stage}_bytes_per_gpu": _zero(stage) for stage in range(4)},
    "adam_bytes_per_param": Formula("byte/param", _adam),
    "optimizer_sharded_bytes_per_param": Formula("byte/param", _optimizer),
    "zero_comm_factor": Formula("1", _zero_traffic),
    "optimizer_to_weight_ratio": Formula("1", _optimizer_ratio),
    "lora_trainable_params": Formula("param", _lora),
    "lora_reduction_factor": Formula("1", _lora_factor),
    "lora_memory_reduction_factor": Formula("1", _lora_memory),
    "checkpointing_saving_fraction": Formula("1", _checkpointing),
    "recompute_overhead_fraction": Formula("1", _recompute),
    "alignment_memory_ratio": Formula("1", _alignment),
}
