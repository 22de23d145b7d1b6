"""The planner: what a model costs, from its shape alone, by formulas that say where they come from. Torch-free."""
