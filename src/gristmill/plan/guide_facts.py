"""What a reader of the guide knows of a printed number, and its digits do not tell: that it is meant as approximate,
under which unstated condition it holds, or that the inputs are the documents' own numbers. By the ids of `guide.csv`.

No verdict stands here. A condition counts only as long as our formulas, given it, come to the printed number.
"""

from __future__ import annotations

from .guide_verdict import Fact

LLAMA_70B = {
    "vocab_size": 128256, "d_model": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "head_dim": 128,
    "d_ff": 28672,
}  # fmt: skip

APPROXIMATE = {
    "B3c": Fact("about", "printed '~2GB per request'"),
    "E5c": Fact("about", "printed '~2/3'"),
    "E5e": Fact("about", "printed '~2/3'"),
    "H13a": Fact("about", "'~4.5x': a ratio of nominal sizes", within=0.02),
}

EXACT = {
    "B4a": Fact("exactly", "a product of 100 requests and one's bytes; the one was rounded before"),
    "F9b": Fact("exactly", "a count of numbers, of which every digit is known"),
    "H11b": Fact("exactly", "a share printed as all of it"),
}

READINGS = {
    "E12b": Fact(
        "reading",
        "a 7B model, of which the row counts the blocks; with two embeddings of 32,000 words it is 6.70B",
        {"vocab_size": 32000, "d_model": 4096, "n_layers": 32, "tied": False},
        quantity="approx_param_count",
    ),
    "E12d": Fact(
        "reading",
        "a 175B model, of which the row counts the blocks; with its embedding it is 174.6B",
        {"vocab_size": 50257, "d_model": 12288, "n_layers": 96},
        quantity="approx_param_count",
    ),
    "E14b": Fact("reading", "counted without the input table: 36.6B", {"tied": True}),
    "F14e": Fact("reading", "the weight is printed as 8 % and stands for 7.5 to 8.5 %", {"weight": 0.076}),
}

CONDITIONS = {
    "A2c": Fact("needs", "no keys and values are read yet", {"seq_len": 1}),
    "A8b": Fact("needs", "a Gen4 drive of 7 GB/s, not the Gen5 of section 3", {"denominator_bytes_per_s": 7e9}),
    "C1b": Fact(
        "needs",
        "nothing but 4 bits for each of 70e9 parameters: no scales, no 16-bit embeddings",
        {"params": 70e9, "bits_per_param": 4},
        quantity="weight_bytes",
    ),
    "C1c": Fact("needs", "the 85.5 GB that the driver reports", {"memory_bytes": 85520809984}),
    "C8a": Fact("needs", "weights in 8 bits", {"required_bytes": 70553706496}),
    "C9a": Fact(
        "needs",
        "the larger batch that 141 GB hold: 70B in 4 bits at 4K, 63 sequences against 26 (row C5a)",
        {"numerator": 2432.2, "denominator": 1166.6},
        quantity="ratio",
    ),
    "C10a": Fact("needs", "requests of 512 tokens instead of 4,096", {"seq_len": 512}, at_least=True),
    "C10b": Fact(
        "needs",
        "weights and cache in 8 bits",
        {"weight_bytes": 8030261248, "kv_bytes_per_elem": 1},
        at_least=True,
    ),
    "D1g": Fact(
        "needs",
        "nothing but 4 bits for each of 7e9 parameters: no scales, no 16-bit embeddings",
        {"params": 7e9, "bits_per_param": 4},
        quantity="weight_bytes",
    ),
    "D5a": Fact("needs", "BF16: 740 of 989 TFLOP/s", {"achieved_flops": 740e12, "peak_flops": 989e12}),
    "E2c": Fact("needs", "full multi-head attention, and three matrices of 8/3 d", {"n_kv_heads": 32, "d_ff": 10923}),
    "E5d": Fact(
        "needs",
        "the blocks alone, with full multi-head attention and three matrices of 8/3 d",
        {"n_kv_heads": 64, "d_ff": 21845, "vocab_size": 1},
    ),
    "E12c": Fact("needs", "grouped queries and a feed-forward width of 28,672", LLAMA_70B, quantity="param_count"),
    "F4b": Fact(
        "needs",
        "the middles of both ranges",
        {"high_range": [1e24, 1e26], "low_range": [1e18, 1e21]},
        quantity="geometric_span_orders",
    ),
    "F4c": Fact(
        "needs",
        "the middles of both ranges",
        {"high_range": [1e24, 1e26], "low_range": [1e18, 1e21]},
        quantity="geometric_span_orders",
    ),
    "F9d": Fact(
        "needs",
        "5 bytes a parameter of activations beside 16 and 2 of states",
        {"numerator": 16 + 5, "denominator": 2 + 5},
        quantity="ratio",
    ),
    "F11b": Fact("needs", "44 layers", {"n_layers": 44}),
    "F19b": Fact(
        "needs",
        "the part of attention alone, 1.4 % of the arithmetic here",
        {"seq_len_from": 2048, "seq_len_to": 4096},
        quantity="attention_flops_ratio",
    ),
    "H1c": Fact(
        "needs", "every discount on all of the traffic", {"slices": [{"share": 1, "factors": [0.3, 0.7, 0.5, 0.5]}]}
    ),
    "H3b": Fact("needs", "two parts of input to one of output", {"input_parts": 2}),
    "H10a": Fact("needs", "more than the lower ends of its parts", {"parts_s": [0.01, 0.03, 0.06]}),
    "H12a": Fact("needs", "a fifth of the week instead of 40 hours", {"busy_hours": 33.6}),
}

QUOTED = {
    "E11a": Fact("quoted", "the first printing of GPT-2's paper says 117M of the 124.4M that were released"),
}

OWN_NUMBERS = {
    "C4b": Fact("own", "its own 250 sequences at 4K", rows=("C3a",)),
    "C5a": Fact("own", "section 45's own model, card and length, in its own format of the cache"),
    "F7b": Fact("own", "its own 8 bytes a parameter for the optimizer", rows=("F7a",)),
    "F7c": Fact("own", "its own 8 bytes a parameter for the optimizer", rows=("F7a",)),
    "F12c": Fact("own", "its own 560 GB of optimizer and 280 GB of weights, of 70e9 parameters", rows=("F12a", "F12b")),
    "F14d": Fact("own", "its own 4B tokens of Wikipedia at 3 %"),
    "F14f": Fact("own", "its own weights of books, 22 % and 8 %, over its own 22B tokens"),
    "H2b": Fact("own", "section 36's own factor of 100 between prices", rows=("H3c",)),
}

FACTS: dict[str, Fact] = APPROXIMATE | EXACT | READINGS | CONDITIONS | QUOTED | OWN_NUMBERS
