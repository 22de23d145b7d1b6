"""Triton kernels, each beside the plain torch that says what it computes. They know tensors only."""
