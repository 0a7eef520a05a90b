"""Truths about attention: arrays of scores, tiles, times of the implementations."""

from cs_systems.bench.attention_case import AttentionConfig, attention_flops, peak_bytes
from cs_systems.estimator.memory import MemoryCase, attention_tensors, num_scores
from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import Finder, Question, under
from cs_systems.grading.truths.records import Wanted, median_of, metric, own, ratio_of, selector
from cs_systems.model.config import ModelConfig

GRID_BATCH, GRID_LENGTHS, GRID_WIDTHS = 8, (256, 1024, 4096, 8192, 16384), (16, 32, 64, 128)
"""The grid of pytorch_attention: no heads, fp32, not causal."""
SEQ_LEN, QUERY_TILE, KEY_TILE = 16384, 128, 64
"""The case of flash_forward.b: batch 1, causal."""

_SHAPE = ("batch_size", "num_heads", "d_head", "seq_len")
_COMMAND = "-m cs_systems.bench.attention"
NAIVE = Wanted(
    "attention", _SHAPE, ("forward", "backward"), _COMMAND, {},
    {"precision": "fp32", "implementation": "naive"},
)  # fmt: skip
FLASH = Wanted(
    "attention", (*_SHAPE, "precision", "implementation"), ("forward", "forward-backward"), _COMMAND, {}
)
_COMPILED = {"implementation": "naive-compiled"}
_NAIVE = {"implementation": "naive"}


def _num_kept_arrays() -> int:
    """Arrays as large as the scores that naive attention keeps from forward to backward."""
    config = ModelConfig(d_model=64, num_heads=1, num_layers=1)
    case = MemoryCase(batch_size=1, seq_len=1024)
    return sum(tensor.num_bytes == 4 * num_scores(config, case) for tensor in attention_tensors(config, case))


def _score_bytes(question: Question) -> Truth:
    array = 4 * GRID_BATCH * GRID_LENGTHS[-1] ** 2
    return Truth(
        float(array),
        why={f"{array // 2}": "fp32 has four bytes", f"{array // GRID_BATCH}": "one for each sequence"},
        hint="one number for each pair of a query and a key, in each sequence",
    )  # fmt: skip


def _first_that_fails(limit_bytes: float) -> Finder:
    """The least length at which forward and backward need more than `limit_bytes` for every width."""

    def find(question: Question) -> Truth:
        def fits(seq_len: int) -> bool:
            configs = [
                AttentionConfig(
                    batch_size=GRID_BATCH, num_heads=0, d_head=width, seq_len=seq_len, precision="fp32",
                    causal=False,
                )
                for width in GRID_WIDTHS
            ]  # fmt: skip
            return all(
                peak_bytes(config, "naive", ("forward", "backward")) <= limit_bytes for config in configs
            )

        first = next(seq_len for seq_len in GRID_LENGTHS if not fits(seq_len))
        hint = "backward holds more arrays of scores than forward keeps: gradients are that large too"
        return Truth(float(first), hint=hint)

    return find


def _kept_by_naive(question: Question) -> Truth:
    return Truth(
        f"4*{_num_kept_arrays()}*B*S**2",
        why={
            "4*B*S**2": "softmax needs its result in backward, and the product with V needs the weights",
            "4*B*S*d": "the arrays asked for have a number for each pair of positions",
        },
        hint="count the arrays with a number for each pair of positions that some backward formula reads",
    )


def _kept_by_flash(question: Question) -> Truth:
    shapes = {"Q": "B*S*d", "K": "B*S*d", "V": "B*S*d", "O": "B*S*d", "L": "B*S"}
    return Truth(
        f"4*({' + '.join(shapes.values())})",
        why={
            "16*B*S*d": "backward also needs a number for each row, to compute the weights again",
            "12*B*S*d + 4*B*S": "the result is kept too: D is computed from it",
            "16*B*S*d + 8*B*S": "one number for each row is enough: maximum and sum are joined in L",
        },
        hint="what backward reads: inputs, the result, and what makes a weight from a score",
    )


def visible_tiles(seq_len: int, query_tile: int, key_tile: int) -> tuple[int, int]:
    """Tiles of a causal score matrix that have a score that counts, and those of them with a hidden one."""
    visible = masked = 0
    for first_query in range(0, seq_len, query_tile):
        last_query = first_query + query_tile - 1
        for first_key in range(0, seq_len, key_tile):
            visible += first_key <= last_query
            masked += first_key <= last_query and first_key + key_tile - 1 > first_query
    return visible, masked


def _num_tiles(name: str) -> Finder:
    def find(question: Question) -> Truth:
        visible, masked = visible_tiles(SEQ_LEN, QUERY_TILE, KEY_TILE)
        rows, columns = SEQ_LEN // QUERY_TILE, SEQ_LEN // KEY_TILE
        counts = {"programs": rows, "tiles": rows * columns, "visible": visible, "masked": masked}
        return Truth(
            float(counts[name]),
            why={
                f"{rows * columns // 2}": "the tiles on the diagonal are needed whole",
                f"{rows * columns}": "the causal mask hides many of them altogether",
                f"{rows}": "tiles are not square, so more than one in each row meets the diagonal",
            },
            hint="draw the matrix of scores of a short sequence, with its tiles and its diagonal",
        )

    return find


def _flops_of_backward(question: Question) -> Truth:
    config = AttentionConfig(
        batch_size=1, num_heads=1, d_head=64, seq_len=1024, precision="fp32", causal=False
    )
    flops = attention_flops(config)
    ratio = flops["backward"] / flops["forward"]
    number = ratio if question.key == "flops_ratio" else 2 * ratio
    return Truth(
        number,
        why={"2": "the scores are computed once more", "4": "the scores are computed once more"},
        hint="count the products of matrices in backward, the recomputation among them; forward has two",
    )


def _gradient_of_scores(question: Question) -> Truth:
    return Truth(
        "P*(dP - D)",
        why={
            "P*dP": "every weight of a row depends on every score of it: something is subtracted",
            "P*(1-P)*dP": "that is the derivative of a sigmoid; the weights of a row depend on one another",
            "P*dP - D": "D is weighted by P as well",
        },
        hint="differentiate a softmax of two scores by hand, then compare",
    )


FINDERS: dict[str, Finder] = {
    **under(
        "pytorch_attention.a",
        {
            **dict.fromkeys(_SHAPE, selector(NAIVE)),
            "forward_median": own(NAIVE, median_of("forward")),
            "backward_median": own(NAIVE, median_of("backward")),
            "held": own(NAIVE, metric("held_bytes")),
        },
    ),
    **under(
        "pytorch_attention.b",
        {
            "score_array": _score_bytes,
            "kept": _kept_by_naive,
            "fails_8": _first_that_fails(8e9),
            "fails_24": _first_that_fails(24e9),
        },
    ),
    **under(
        "torch_compile.a",
        {
            **dict.fromkeys(_SHAPE, selector(NAIVE)),
            "forward_speedup": own(NAIVE, ratio_of((0, "forward"), (1, "forward")), _COMPILED),
            "backward_speedup": own(NAIVE, ratio_of((0, "backward"), (1, "backward")), _COMPILED),
        },
    ),
    "flash_forward.a kept": _kept_by_flash,
    **under(
        "flash_forward.b", {name: _num_tiles(name) for name in ("programs", "tiles", "visible", "masked")}
    ),
    **under(
        "flash_backward.a",
        {
            "dS": _gradient_of_scores,
            "products": _flops_of_backward,
            "flops_ratio": _flops_of_backward,
        },
    ),
    **under(
        "flash_benchmarking.a",
        {
            **dict.fromkeys(FLASH.chosen, selector(FLASH)),
            "flash_forward": own(FLASH, median_of("forward"), _NAIVE),
            "naive_forward": own(FLASH, median_of("forward", 1), _NAIVE),
            "forward_speedup": own(FLASH, ratio_of((1, "forward"), (0, "forward")), _NAIVE),
            "both_speedup": own(FLASH, ratio_of((1, "forward-backward"), (0, "forward-backward")), _NAIVE),
        },
    ),
}
