"""Benchmarks of items with known answers: multiple choice, schemas, last words, generation; `harness.measure` runs
them on a model."""
