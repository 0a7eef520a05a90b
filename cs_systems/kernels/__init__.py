"""Triton kernels for the hot path of a Transformer. They know tensors, not models.

Each operation has the same parts under one name: the Triton kernels, an `autograd.Function` that runs them,
and the plain function that people call. Read `weighted_sum.py` first, then `softmax.py`, then
`flash_attention_torch.py` beside `flash_attention.py`.

Importing this package needs no Triton; importing a kernel's module does.
"""

# BEGIN INSTRUCTOR
# The formula of each operation in plain PyTorch is in `reference.py`; `apply.py` puts kernels into models.
# END INSTRUCTOR
