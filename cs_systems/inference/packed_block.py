"""The weights of one block as the fast decoder keeps them: fused, converted, laid out."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cs_systems.inference.projections import Layout, Projection, make_projection
from cs_systems.model.layers import LayerNorm, Linear, RMSNorm
from cs_systems.model.transformer import TransformerBlock


class PackedNorm(nn.Module):
    """The model's norm as one operation of PyTorch."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, norm: RMSNorm | LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = norm.eps
        self.is_rms = isinstance(norm, RMSNorm)
        self.register_buffer("weight", norm.weight.detach().to(dtype))
        self.register_buffer("bias", None if isinstance(norm, RMSNorm) else norm.bias.detach().to(dtype))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalise the last axis."""
        if self.is_rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PackedBlock(nn.Module):
    """The weights of a block."""

    def __init__(self, block: TransformerBlock, layout: Layout, dtype: torch.dtype) -> None:
        super().__init__()
        attn, ffn = block.attn, block.ffn
        self.ln1 = PackedNorm(block.ln1, dtype)
        self.ln2 = None if block.ln2 is None else PackedNorm(block.ln2, dtype)
        self.qkv = fuse([attn.q_proj, attn.k_proj, attn.v_proj], layout, dtype)
        self.output = fuse([attn.output_proj], layout, dtype)
        self.activation = ffn.activation
        self.up = fuse([ffn.w1, ffn.w3] if ffn.activation == "swiglu" else [ffn.w1], layout, dtype)
        self.down = fuse([ffn.w2], layout, dtype)

    def feed_forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """`FeedForward.forward`."""
        hidden = self.up(x)
        match self.activation:
            case "swiglu":
                gate, linear = hidden.chunk(2, dim=-1)
                hidden = F.silu(gate) * linear
            case "gelu":
                hidden = F.gelu(hidden)
            case "gelu_tanh":
                hidden = F.gelu(hidden, approximate="tanh")
            case "relu":
                hidden = F.relu(hidden)
        return self.down(hidden)


def fuse(linears: list[Linear], layout: Layout, dtype: torch.dtype) -> Projection:
    """One product whose result is those of `linears` side by side."""
    weight = (
        torch.cat([linear.weight.detach() for linear in linears]) if len(linears) > 1 else linears[0].weight
    )
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias = torch.cat(biases).to(dtype) if biases else None
    return make_projection(layout, weight.detach() if layout == "int8" else weight.detach().to(dtype), bias)
