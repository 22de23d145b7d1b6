"""`python -m gristmill` (and `torchrun -m gristmill pretrain ...`)."""

from .cli import main

main()
