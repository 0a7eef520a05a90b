"""get_fsdp: each rank keeps rows of the weights, gathers them when they are used, and frees them."""

import math

import torch
from graded_support.compare import check_tensor, fail
from graded_support.ranks import run_on_ranks
from graded_support.sharded_weights import (
    SHARDED,
    Toy,
    check_end,
    check_full,
    compute_outputs,
    train,
)


def whole():
    return dict(Toy().named_parameters())


def test_each_rank_keeps_its_rows():
    for rank, result in enumerate(run_on_ranks(train)):
        kept = sum(math.prod(shape) for shape in result["shards"])
        all_values = sum(parameter.numel() for parameter in whole().values())
        most = sum(
            math.ceil(len(p) / 2) * p[0].numel() if name in SHARDED else p.numel()
            for name, p in whole().items()
        )
        if kept > most:
            fail(
                f"rank {rank} of 2 keeps {kept} of {all_values} values; expected {most} at most: the weights "
                "of nn.Linear and nn.Embedding (or what is called so) are shared out by rows"
            )
        if [5, 4] not in result["shards"]:
            fail(
                f"rank {rank} of 2 keeps parameters of {result['shards']}; a weight of (10, 4) becomes (5, 4)"
            )
        if [4] not in result["shards"]:
            fail(f"rank {rank} of 2 keeps parameters of {result['shards']}; the norm of (4,) stays whole")


def test_gathered_parameters_are_those_that_were_wrapped():
    for num_ranks in (2, 3):
        for rank, result in enumerate(run_on_ranks(train, num_ranks=num_ranks)):
            full = check_full(result, "start")
            for name, parameter in whole().items():
                check_tensor(
                    full[name],
                    parameter.detach().double(),
                    what=f"{name}, gathered on rank {rank} of {num_ranks} before any step,",
                    allowed=0.0,
                    dtype=torch.float32,
                    hint="The rows of rank 0 come first, then those of rank 1, without what pads them.",
                )


def test_outputs_are_those_of_the_whole_model():
    for rank, result in enumerate(run_on_ranks(train)):
        check_tensor(
            result["outputs"],
            compute_outputs(rank),
            what=f"the output of the wrapped model on rank {rank} of 2",
            allowed=0.0,  # small integers: nothing is rounded
            dtype=torch.float32,
            hint="Each rank runs the whole model on its own batch, with weights gathered from all.",
        )


def check_gradient_types(results):
    for rank, result in enumerate(results):
        for shape, gradient in result["gradients"]:
            if gradient is None:
                fail(f"a parameter of {shape} on rank {rank} has no gradient after fsdp_on_after_backward")
            if gradient != ["torch.float32", shape]:
                fail(
                    f"a parameter of {shape} on rank {rank} has a gradient of {gradient[1]} in "
                    f"{gradient[0]}; expected torch.float32 and the shape of the parameter, so that any "
                    "optimizer can use it"
                )


def test_a_step_is_that_of_one_process():
    results = run_on_ranks(train)
    check_gradient_types(results)
    check_end(results)


def test_a_step_on_three_ranks():
    results = run_on_ranks(train, num_ranks=3)
    check_gradient_types(results)
    check_end(results)


def test_a_second_batch():
    check_end(run_on_ranks(train, num_batches=2), num_batches=2)


def test_whole_weights_are_freed():
    for rank, result in enumerate(run_on_ranks(train)):
        if result["left_over"]:
            fail(
                f"after a step rank {rank} still holds whole weights, tensors of {result['left_over']}: free "
                "what was gathered when it has been used, and the weights that were there before wrapping"
            )


def test_compute_dtype():
    results = run_on_ranks(train, compute_dtype=torch.bfloat16)
    for rank, result in enumerate(results):
        check_tensor(
            result["outputs"],
            compute_outputs(rank),
            what=f"the output with compute_dtype bf16 on rank {rank}",
            allowed=0.0,  # small integers: nothing is rounded, in bf16 neither
            dtype=torch.bfloat16,
        )
        for collective in result["collectives"]:
            during_a_pass = collective["phase"] in ("forward", "backward")
            if during_a_pass and collective["name"] == "all_gather" and "float32" in collective["dtype"]:
                fail("weights are gathered in fp32: cast the shard to compute_dtype first")
            if (
                collective["name"] in ("all_reduce", "reduce_scatter", "reduce")
                and "16" in collective["dtype"]
            ):
                fail("gradients are summed in bf16: cast them to fp32 before they are reduced")
    check_gradient_types(results)
    check_end(results)
