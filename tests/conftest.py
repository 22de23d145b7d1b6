"""Shared by all tests: one thread a process, since `make test` runs two processes on two cores. Without a GPU
kernels run in Triton's interpreter, which Triton must be told before anything imports it, as torch's compiler does."""

import os

import torch

torch.set_num_threads(1)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the command line does, before the first product
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
