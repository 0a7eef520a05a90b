"""run_transformer_block: x + attention(norm1(x)), then x + feed-forward(norm2(x))."""

import torch
from graded_support import model_truth as truth
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_checks import check_unchanged


def check(adapters, weights, x, *, num_heads=2, theta=10_000.0, max_seq_len=16):
    """Compare with float64, and with blocks that are put together in other ways."""
    d_ff, d_model = weights["ffn.w1.weight"].shape
    attend, feed_forward, norm1, norm2 = truth.block_parts(weights, num_heads, theta, x.shape[1])
    wide = x.double()
    projections = [weights[f"attn.{name}_proj.weight"].double() for name in ("q", "k", "v", "output")]
    after = wide + attend(norm1(wide))
    expected = after + feed_forward(norm2(after))
    post = norm1(wide + attend(wide))
    unrotated = wide + truth.self_attention(norm1(wide), projections, num_heads)
    branch = attend(norm1(wide))

    def with_eps(eps):
        return lambda: truth.block(wide, weights, num_heads, theta, eps)

    mistakes = {
        "norms stand behind the sums (post-norm); they stand inside the branches": (
            norm2(post + feed_forward(post))
        ),
        "the second norm is ln1 again": after + feed_forward(norm1(after)),
        "the two norms are exchanged": (
            lambda: wide + attend(norm2(wide)) + feed_forward(norm1(wide + attend(norm2(wide))))
        ),
        "the first norm is missing": wide + attend(wide) + feed_forward(norm2(wide + attend(wide))),
        "the second norm is missing": after + feed_forward(after),
        "the residual around attention is missing": branch + feed_forward(norm2(branch)),
        "the residual around the feed-forward layer is missing": feed_forward(norm2(after)),
        "both residuals are missing": feed_forward(norm2(branch)),
        "what is normed is passed on, and not the stream itself": (
            norm2(norm1(wide) + branch) + feed_forward(norm2(norm1(wide) + branch))
        ),
        "the feed-forward layer reads the stream from before attention (parallel branches)": (
            after + feed_forward(norm2(wide))
        ),
        "the second sum starts from the input of the block": wide + feed_forward(norm2(after)),
        "rope is missing": unrotated + feed_forward(norm2(unrotated)),
        "theta is 10000, whatever is asked for": lambda: truth.block(wide, weights, num_heads, 10_000.0),
        "eps of the norms is 1e-6; it is 1e-5": with_eps(1e-6),
        "eps of the norms is 1e-8; it is 1e-5": with_eps(1e-8),
        "eps of the norms is left out; it is 1e-5": with_eps(0.0),
    }
    largest = max(float(tensor.abs().max()) for tensor in (after, expected))
    check_tensor(
        adapters.run_transformer_block(d_model, num_heads, d_ff, max_seq_len, theta, weights, x),
        expected,
        what=f"run_transformer_block of {tuple(x.shape)}",
        allowed=rounding_bound(torch.float32, truth.block_roundings(d_model, d_ff, x.shape[1]), largest),
        dtype=torch.float32,
        mistakes=mistakes,
        hint="If attention and feed-forward are right, look at norms, sums, and what each branch reads.",
    )


def test_norms_and_sums_stand_in_their_places(adapters):
    check(adapters, truth.random_weights(16, 24), torch.randn(2, 6, 16))


def test_the_stream_passes_when_the_matrices_are_zero(adapters):
    weights = truth.random_weights(8, 12)
    for name in weights:
        if name.startswith(("attn", "ffn")):
            weights[name].zero_()
    x = torch.randn(2, 3, 8)
    check_tensor(
        adapters.run_transformer_block(8, 2, 12, 16, 10_000.0, weights, x),
        x.double(),
        what="run_transformer_block with matrices of zeros",
        allowed=0.0,
        dtype=torch.float32,
        hint="Both branches are 0 here: what they are added to must be the stream itself, as it came in.",
    )
    # What passes the stream on and nothing else is no block.
    check(adapters, truth.random_weights(8, 12), x)


def test_any_theta_and_sequences_up_to_the_longest(adapters):
    weights = truth.random_weights(12, 10)
    for seq in (1, 3, 8):
        check(adapters, weights, torch.randn(2, seq, 12), num_heads=3, theta=30.0, max_seq_len=8)


def test_eps_of_the_norms(adapters):
    check(adapters, truth.random_weights(16, 24), 1e-3 * torch.randn(2, 4, 16))


def test_the_input_stays_as_it_was(adapters):
    weights, x = truth.random_weights(8, 12), torch.randn(1, 3, 8)
    before = x.clone()
    check(adapters, weights, x)
    check_unchanged(x, before, what="run_transformer_block", name="in_features")
