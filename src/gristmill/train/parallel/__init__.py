"""Training with several processes, as `torchrun` starts them: who they are, their mesh, how a model is shared.

The model knows nothing of this: `data_parallel.parallelize` wraps it from outside.
"""
