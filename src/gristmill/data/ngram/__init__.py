"""A reference language model of word n-grams, and the perplexity of documents under it."""

from .arpa import read_arpa, write_arpa
from .model import NgramModel
from .stage import (
    load_model,
    perplexity_cuts,
    perplexity_rules,
    perplexity_step,
    train_reference,
)
from .train import train_ngram, train_ngram_files

__all__ = [
    "NgramModel",
    "load_model",
    "perplexity_cuts",
    "perplexity_rules",
    "perplexity_step",
    "read_arpa",
    "train_ngram",
    "train_ngram_files",
    "train_reference",
    "write_arpa",
]
