"""Linear, Embedding, the two norms and the feed-forward layer, from elementary tensor operations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import rms_norm


class Linear(nn.Module):
    """y = x W^T (+ b), with W stored as (d_out, d_in).

    W starts normal with variance 2 / (d_in + d_out), cut at three standard deviations.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        init_normal(self.weight, std=(2 / (d_in + d_out)) ** 0.5)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Multiply the last axis by the weight."""
        # BEGIN SOLUTION linear
        if self.bias is None:
            return x @ self.weight.T
        rows = x.reshape(-1, x.shape[-1])  # one fused matrix product and addition instead of two passes
        return torch.addmm(self.bias, rows, self.weight.T).view(*x.shape[:-1], self.bias.shape[0])
        # END SOLUTION


class Embedding(nn.Module):
    """A row of `weight` per id."""

    def __init__(self, num_embeddings: int, d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, d_model))
        init_normal(self.weight, std)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """Look the ids up."""
        # BEGIN SOLUTION embedding
        return F.embedding(ids, self.weight)
        # END SOLUTION


def init_normal(weight: Tensor, std: float) -> None:
    """Fill with a normal distribution whose values beyond three standard deviations are moved to the edge.

    Clamping touches 0.3 % of the values and costs a tenth of drawing from the truncated distribution.
    """
    with torch.no_grad():
        weight.normal_(std=std).clamp_(-3 * std, 3 * std)


class RMSNorm(nn.Module):
    """`functional.rms_norm` with its weight; a kernel can take the place of the function."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps
        self.normalise: Callable[[Tensor, Tensor, float], Tensor] = rms_norm

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalise the last axis."""
        # BEGIN SOLUTION rmsnorm
        return self.normalise(x, self.weight, self.eps)
        # END SOLUTION


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016), computed in fp32."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalise the last axis."""
        # BEGIN SOLUTION rmsnorm
        wide = x.float() if x.dtype != torch.float64 else x
        centred = wide - wide.mean(-1, keepdim=True)
        inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return torch.addcmul(self.bias, centred * inverse_std, self.weight).to(x.dtype)
        # END SOLUTION


class FeedForward(nn.Module):
    """w2(act(w1 x)), or with swiglu w2(silu(w1 x) * w3 x) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.w1 = Linear(config.d_model, config.d_ff, config.ffn_bias)
        self.w2 = Linear(config.d_ff, config.d_model, config.ffn_bias)
        if config.activation == "swiglu":
            self.w3 = Linear(config.d_model, config.d_ff, config.ffn_bias)
            self.gate: Callable[[Tensor, Tensor], Tensor] | None = None  # a kernel for silu(w1 x) * w3 x

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Two or three matrix products around the non-linearity."""
        # BEGIN SOLUTION swiglu
        match self.activation:
            case "swiglu":
                if self.gate is None:  # written as one expression, so that w1 x is gone before w3 x comes
                    hidden = F.silu(self.w1(x)) * self.w3(x)
                else:
                    hidden = self.gate(self.w1(x), self.w3(x))
            case "gelu":
                hidden = F.gelu(self.w1(x))
            case "gelu_tanh":
                hidden = F.gelu(self.w1(x), approximate="tanh")
            case "relu":
                hidden = F.relu(self.w1(x))
        return self.w2(hidden)
        # END SOLUTION


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm that the configuration names."""
    cls = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return cls(config.d_model, config.norm_eps)
