"""get_sharded_optimizer: each rank keeps a part of the state, and all end with the same parameters."""

from graded_support.compare import fail
from graded_support.ranks import run_on_ranks
from graded_support.sharded_state import Run, check_parameters, make_parameters, optimize


def test_parameters_are_those_of_one_adamw():
    run = Run(without_gradient=2)
    check_parameters(run_on_ranks(optimize, run=run), run)


def test_each_rank_keeps_its_part_of_the_state():
    run = Run()
    sizes = [parameter.numel() for parameter in make_parameters(run)]
    for num_ranks in (2, 3):
        kept = [result["num_state_values"] for result in run_on_ranks(optimize, num_ranks=num_ranks, run=run)]
        # Parts of parameters can be shared out evenly, whole ones as evenly as the largest allows.
        most = sum(sizes) / num_ranks + max(sizes)
        if sum(kept) < sum(sizes):
            fail(f"the optimizers inside hold state for {kept} values on the ranks, of {sum(sizes)} in all")
        if max(kept) > most:
            rank = kept.index(max(kept))
            fail(
                f"on rank {rank} of {num_ranks} the optimizer keeps exp_avg for {max(kept)} of {sum(sizes)} "
                f"values, expected about {sum(sizes) / num_ranks:.0f} and never more than {most:.0f}: give "
                "each parameter to one rank, by its number of values, and only that rank's optimizer sees it"
            )


def test_groups_keep_their_settings():
    run = Run(groups=True)
    check_parameters(run_on_ranks(optimize, run=run), run)


def test_a_group_added_after_a_step():
    run = Run(added_later=True)
    check_parameters(run_on_ranks(optimize, run=run), run)


def test_a_learning_rate_changed_between_steps():
    run = Run(changed_lr=0.01)
    check_parameters(run_on_ranks(optimize, run=run), run)


def test_more_ranks_than_parameters():
    run = Run(shapes=((4, 3), (5,)))
    advice = "Optimizers refuse an empty list: make the one inside when the rank owns its first parameter"
    check_parameters(run_on_ranks(optimize, num_ranks=3, run=run, advice=advice), run)


def test_a_closure_is_called_once_and_its_loss_returned():
    run = Run(closure=True)
    results = run_on_ranks(optimize, run=run)
    for rank, result in enumerate(results):
        for step in range(run.num_steps):
            num_calls, has_grad, loss = result["notes"][3 * step : 3 * step + 3]
            if num_calls != 1:
                fail(f"step {step + 1} called its closure {num_calls} times on rank {rank}; expected once")
            if not has_grad:
                fail("the closure runs under torch.no_grad: it calls backward, so it needs torch.enable_grad")
            if loss != 2.5 + step:
                given = "None" if loss == -1.0 else f"{loss:g}"
                fail(f"step(closure) returned {given} on rank {rank}; expected what the closure returned")
    check_parameters(results, run)
