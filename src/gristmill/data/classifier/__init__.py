"""A classifier of good against bad text in fastText's form, trained here, and fastText models scored fast."""

from .examples import LABELS
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
    "classifier_rules",
    "classifier_step",
    "train_classifier",
    "train_classifier_files",
    "train_for_stage",
]
