"""Evaluation: bits per byte beside gzip, held-out tasks with confidence intervals; `stage.evaluate` is the stage."""
