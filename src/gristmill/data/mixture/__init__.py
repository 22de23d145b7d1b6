"""How much each domain weighs in training, which documents are kept for validation, and what is drawn when.

`weights` settles the shares (fixed numbers, temperature, UniMax, a cap on repeats), `validation` the split, `sampling`
draws documents by a seed; `proxies`, `regression` and `optimum` find shares from the losses of many small models.
"""

from .proxies import best_weights, propose_ratios, weights_table, write_ratios
from .sampling import Draw, sample, write_sample
from .validation import choose_validation, choose_validation_hashed, key_hashes
from .weights import Mixture, domain_tokens, read_weights, settle_mixture

__all__ = [
    "Draw",
    "Mixture",
    "best_weights",
    "choose_validation",
    "choose_validation_hashed",
    "domain_tokens",
    "key_hashes",
    "propose_ratios",
    "read_weights",
    "sample",
    "settle_mixture",
    "weights_table",
    "write_ratios",
    "write_sample",
]
