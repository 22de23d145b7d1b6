"""Stage 05, training: one loop (`loop`) with its losses, schedule, batches and checkpoints; `pretrain` is the stage."""
