"""Shared by all tests: one thread a process, since `make test` runs two processes on two cores."""

import torch

torch.set_num_threads(1)
