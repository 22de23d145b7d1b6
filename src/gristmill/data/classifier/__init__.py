"""A classifier of good against bad text in fastText's form, trained here, and fastText models scored fast."""

from .examples import LABELS
from .fasttext_file import FastTextFile, read_fasttext, write_fasttext
from .predict import Classifier
from .stage import (
    classifier_rules,
    classifier_step,
    train_classifier,
    train_classifier_files,
    train_for_stage,
)

__all__ = [
    "LABELS",
    "Classifier",
    "FastTextFile",
    "classifier_rules",
    "classifier_step",
    "read_fasttext",
    "train_classifier",
    "train_classifier_files",
    "train_for_stage",
    "write_fasttext",
]
