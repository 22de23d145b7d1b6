"""Capacity: what a fleet does with traffic, simulated with the engine's own scheduler on a modelled device."""
