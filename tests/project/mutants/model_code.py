"""Code of the wrong implementations of the model's parts: what students write, a setting for each mistake."""

import math

import torch
import torch.nn.functional as F

# --- Linear, embedding, norm ------------------------------------------------------------------------------


def linear_with_bias(d_in, d_out, weights, in_features):
    layer = torch.nn.Linear(d_in, d_out)
    layer.load_state_dict({"weight": weights}, strict=False)
    return layer(in_features)


def linear_of_matrices(d_in, d_out, weights, in_features):
    return torch.mm(in_features.reshape(-1, d_in), weights.T)


def rmsnorm(d_model, eps, weights, in_features, *, dim=-1, centred=False, outside=False, constant_eps=None):
    x = in_features.float()
    eps = eps if constant_eps is None else constant_eps
    x = x - x.mean(-1, keepdim=True) if centred else x
    mean_square = x.square().mean(dim, keepdim=True)
    root = mean_square.sqrt() + eps if outside else (mean_square + eps).sqrt()
    return (x / root * weights).to(in_features.dtype)


def rmsnorm_in_place(d_model, eps, weights, in_features):
    return in_features.div_((in_features.square().mean(-1, keepdim=True) + eps).sqrt()).mul_(weights)


def rmsnorm_in_its_dtype(d_model, eps, weights, in_features):
    return in_features / ((in_features * in_features).mean(-1, keepdim=True) + eps).sqrt() * weights


def rmsnorm_to_fp32(d_model, eps, weights, in_features):
    return rmsnorm(d_model, eps, weights.float(), in_features.float())


def rmsnorm_detached(d_model, eps, weights, in_features):
    root = (in_features.detach().float().square().mean(-1, keepdim=True) + eps).sqrt()
    return (in_features.float() / root * weights).to(in_features.dtype)


# --- Feed-forward -----------------------------------------------------------------------------------------


def silu_by_two_exponentials(x):
    return x * x.exp() / (1 + x.exp())


def swiglu(d_model, d_ff, w1, w2, w3, x, *, gate=lambda a, b: F.silu(a) * b):
    return gate(x @ w1.T, x @ w3.T) @ w2.T


def swiglu_of_matrices(d_model, d_ff, w1, w2, w3, x):
    return swiglu(d_model, d_ff, w1, w2, w3, x.reshape(-1, d_model))


# --- Rotations --------------------------------------------------------------------------------------------


def rope(
    d_k, theta, length, x, positions, *, halves=False, sign=1, twice=2, tables=torch.float32, shear=False
):
    frequencies = theta ** (-twice * torch.arange(d_k // 2) / d_k)
    angles = (sign * positions[..., None].to(tables) * frequencies.to(tables)).float()
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    first = a * cos - b * sin
    second = (first if shear else a) * sin + b * cos  # shear: the channel is overwritten before it is read
    return torch.cat((first, second), -1) if halves else torch.stack((first, second), -1).flatten(-2)


def rope_by_rank(d_k, theta, length, x, positions):
    return rope(d_k, theta, length, x, torch.arange(x.shape[-2]))


def rope_with_fixed_theta(d_k, theta, length, x, positions):
    return rope(d_k, 10_000.0, length, x, positions)


def rope_in_fp32(d_k, theta, length, x, positions):
    return rope(d_k, theta, length, x.float(), positions)


def rope_of_three_axes(d_k, theta, length, x, positions):
    return rope(d_k, theta, length, x.reshape(-1, *x.shape[-2:]), positions)


def rope_in_place(d_k, theta, length, x, positions):
    x.copy_(rope(d_k, theta, length, x, positions))
    return x


# --- Softmax and loss -------------------------------------------------------------------------------------


def softmax_without_maximum(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


def softmax_with_one_maximum(x, dim):
    return softmax_without_maximum(x - x.max(), dim)


def softmax_in_place(x, dim):
    return softmax_without_maximum(x.sub_(x.amax(dim, keepdim=True)), dim)


def softmax_with_detached_sum(x, dim):
    exponentials = (x - x.amax(dim, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim, keepdim=True).detach()


def softmax_without_graph(x, dim):
    with torch.no_grad():
        return torch.softmax(x, dim)


def loss_by_two_steps(inputs, targets):
    return -torch.log(torch.softmax(inputs, -1)[torch.arange(len(inputs)), targets]).mean()


def loss_in_place(inputs, targets):
    inputs -= inputs.amax(-1, keepdim=True)
    return F.cross_entropy(inputs, targets)


def loss_as_a_new_tensor(inputs, targets):
    return torch.tensor(F.cross_entropy(inputs, targets).item())


# --- Attention --------------------------------------------------------------------------------------------


def attention(q, k, v, mask=None, *, power=-0.5, hide=-math.inf, softmax=torch.softmax, dim=-1):
    scores = q @ k.mT * q.shape[-1] ** power
    if mask is not None:
        scores = scores.masked_fill(~mask, hide)
    return softmax(scores, dim) @ v


def attention_inverted(q, k, v, mask=None):
    return attention(q, k, v, mask if mask is None else ~mask)


def attention_hidden_afterwards(q, k, v, mask=None):
    weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
    return (weights if mask is None else weights * mask) @ v


def attention_without_mask(q, k, v, mask=None):
    return attention(q, k, v)


def attention_scaled_by_values(q, k, v, mask=None):
    return attention(q * (q.shape[-1] / v.shape[-1]) ** 0.5, k, v, mask)


def attention_of_three_axes(q, k, v, mask=None):
    q, k, v = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (q, k, v))
    return attention(q, k, v, mask if mask is None else mask.reshape(-1, *mask.shape[-2:]))


def attention_in_place(q, k, v, mask=None):
    return attention(q.mul_(q.shape[-1] ** -0.5), k, v, mask, power=0)


def heads(
    d_model, num_heads, wq, wk, wv, wo, x, *,
    shift=0, is_causal=True, split="by head", join="behind", power=-0.5, turn=None,
    turn_values=None, width=None, mask_size=None, alone=False,
):  # fmt: skip
    batch, seq, _ = x.shape

    def apart(y):
        if split == "interleaved":
            return y.view(batch, seq, -1, num_heads).permute(0, 3, 1, 2)
        if split == "viewed":
            return y.view(batch, num_heads, seq, -1)
        return y.view(batch, seq, num_heads, -1).transpose(1, 2)

    q, k, v = (apart(x @ weight.T) for weight in (wq, wk, wv))
    q, k = (turn(q), turn(k)) if turn else (q, k)
    v = turn_values(v) if turn_values else v
    size = mask_size or seq  # that of the longest sequence does not fit a shorter one
    mask = torch.ones(size, size, dtype=torch.bool).tril(shift) if is_causal else None
    mask = torch.eye(seq, dtype=torch.bool) if alone else mask
    scale = (width or d_model // num_heads) ** power
    y = attention(q * scale, k, v, mask, power=0)
    return (y.transpose(1, 2) if join == "behind" else y).reshape(batch, seq, d_model) @ wo.T


def heads_with_rope(
    d_model, num_heads, length, theta, wq, wk, wv, wo, x, positions=None, *, values=False, **wrong
):
    at = torch.arange(x.shape[1])[None] if positions is None else positions

    def turn(y):
        return rope(d_model // num_heads, theta, length, y, at[:, None], **wrong)

    return heads(d_model, num_heads, wq, wk, wv, wo, x, turn=turn, turn_values=turn if values else None)


def heads_with_rope_by_rank(*arguments):
    return heads_with_rope(*arguments[:9])


def heads_with_rope_on_all(d_model, num_heads, length, theta, wq, wk, wv, wo, x, positions=None):
    at = torch.arange(x.shape[1])[None] if positions is None else positions

    def turn(y):
        row = rope(d_model, theta, length, y.transpose(1, 2).flatten(2), at)
        return row.view(*x.shape[:2], num_heads, -1).transpose(1, 2)

    return heads(d_model, num_heads, wq, wk, wv, wo, x, turn=turn)


def heads_causal_by_position(d_model, num_heads, length, theta, wq, wk, wv, wo, x, positions=None):
    at = torch.arange(x.shape[1])[None] if positions is None else positions
    q, k, v = ((x @ weight.T).view(*x.shape[:2], num_heads, -1).transpose(1, 2) for weight in (wq, wk, wv))
    q, k = (rope(d_model // num_heads, theta, length, y, at[:, None]) for y in (q, k))
    y = attention(q, k, v, (at[:, :, None] >= at[:, None, :])[:, None])
    return y.transpose(1, 2).reshape(x.shape) @ wo.T


# --- Block and model --------------------------------------------------------------------------------------


def block(d_model, num_heads, d_ff, length, theta, weights, x, *, form="pre-norm", eps=1e-5, **wrong):
    def attend(y):
        projections = [weights[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]
        if wrong.get("no_rope"):
            return heads(d_model, num_heads, *projections, y)
        if wrong.get("future"):
            return heads(d_model, num_heads, *projections, y, is_causal=False)
        if wrong.get("alone"):
            return heads(d_model, num_heads, *projections, y, alone=True)
        if wrong.get("full_mask"):
            return heads(d_model, num_heads, *projections, y, mask_size=length)
        return heads_with_rope(d_model, num_heads, length, theta, *projections, y)

    def norm(name, y):
        return rmsnorm(d_model, eps, weights[f"{name}.weight"], y)

    def feed_forward(y):
        return swiglu(d_model, d_ff, *(weights[f"ffn.{name}.weight"] for name in ("w1", "w2", "w3")), y)

    match form:
        case "post-norm":
            y = norm("ln1", x + attend(x))
            return norm("ln2", y + feed_forward(y))
        case "one residual":
            y = attend(norm("ln1", x))
            return y + feed_forward(norm("ln2", y))
        case "parallel":
            return x + attend(norm("ln1", x)) + feed_forward(norm("ln2", x))
        case "in place":
            x += attend(norm("ln1", x))
            x += feed_forward(norm("ln2", x))
            return x
        case "normed stream":
            y = norm("ln1", x)
            y = norm("ln2", y + attend(y))
            return y + feed_forward(y)
    y = x + attend(norm("ln1", x))
    return y + feed_forward(norm("ln1" if form == "ln1 twice" else "ln2", y))


def model(vocab, length, d_model, num_layers, num_heads, d_ff, theta, weights, ids, *, part="", **wrong):
    x = weights["token_embeddings.weight"][ids]
    for layer in range(num_layers):
        prefix = f"layers.{0 if part == 'same layer' else layer}."
        own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        x = block(d_model, num_heads, d_ff, length, theta, own, x, **wrong)
    if part != "final norm":
        x = rmsnorm(d_model, 1e-5, weights["ln_final.weight"], x)
    return x @ weights["token_embeddings.weight" if part == "tied" else "lm_head.weight"].T


def model_with_fixed_theta(vocab, length, d_model, num_layers, num_heads, d_ff, theta, weights, ids):
    return model(vocab, length, d_model, num_layers, num_heads, d_ff, 10_000.0, weights, ids)


def model_with_softmax(*arguments):
    return model(*arguments).softmax(-1)


def model_of_full_length(vocab, length, *arguments):
    ids = F.pad(arguments[-1], (0, length - arguments[-1].shape[1]))
    return model(vocab, length, *arguments[:-1], ids)
