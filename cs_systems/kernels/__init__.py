"""Triton kernels for the hot path of a Transformer. They know tensors, not models.

Each operation has the same four parts under one name: the formula in plain PyTorch (`reference.py`), the
Triton kernels, an `autograd.Function` that runs them, and the plain function that people call. Read
`weighted_sum.py` first, then `softmax.py`, then `flash_attention_torch.py` beside `flash_attention.py`.

Importing this package needs no Triton; importing a kernel's module does. `apply.py` puts kernels into models.
"""
