"""Wrong parallel strategies, and what the graded tests must say of each."""

from dataclasses import dataclass
from functools import partial

import distributed_reference as reference

import mutants.wrong_data_parallel as dp
import mutants.wrong_sharding as sharded
from mutants.mutant import Mutant


@dataclass(frozen=True)
class RankMutant(Mutant):
    """A mutant that only one test is run against: each run starts processes."""

    noticed_by: str
    """Name of the test without test_."""


def naive(name, says, noticed_by, wrapper):
    return RankMutant("naive_ddp", name, {"get_ddp": wrapper}, says, noticed_by)


def overlap(name, says, noticed_by, wrapper):
    return RankMutant("ddp_overlap_individual_parameters", name, {"get_ddp": wrapper}, says, noticed_by)


def bucketed(name, says, noticed_by, wrapper):
    return RankMutant("ddp_overlap_bucketed", name, {"get_ddp_bucketed": wrapper}, says, noticed_by)


def sharding(name, says, noticed_by, wrapper):
    return RankMutant("optimizer_state_sharding", name, {"get_sharded_optimizer": wrapper}, says, noticed_by)


def fsdp(name, says, noticed_by, wrapper):
    return RankMutant("fsdp", name, {"get_fsdp": wrapper}, says, noticed_by)


OTHER_WEIGHTS = "rank 1 started from other weights"
SUMMED = "summed over the ranks, not averaged"
TOO_EARLY = "the update happened before the gradients had arrived"
NEVER_SENT = "they were never sent"
BLOCKED = "backward of rank 0 waits for rank 1"
NEVER_JOINED = "rank 1 waits for a collective that rank 0 never joined"
OTHER_ORDER = "is all_reduce of 24 values of float32, rank . called all_reduce of 4 values of float32 instead"
WHOLE_BATCH = "gradients_are_those_of_the_whole_batch"
STARTS = "communication_starts_during_backward"
WAITS = "backward_does_not_wait_and_the_update_does"
BUCKETS = "buckets_are_as_full_as_they_may_be"

MUTANTS = [
    naive(
        "no-broadcast",
        OTHER_WEIGHTS,
        "every_rank_starts_from_the_weights_of_rank_0",
        partial(dp.Naive, broadcast=False),
    ),
    naive("no-broadcast-seen-later", OTHER_WEIGHTS, WHOLE_BATCH, partial(dp.Naive, broadcast=False)),
    naive("summed", SUMMED, WHOLE_BATCH, partial(dp.Naive, scale=1.0)),
    naive(
        "halved",
        "divided by 2, not by the number of ranks",
        "gradients_on_three_ranks",
        partial(dp.Naive, scale=0.5),
    ),
    naive("nothing-sent", NEVER_SENT, WHOLE_BATCH, dp.SendsNothing),
    naive(
        "parameters-averaged", "parameter is sent instead of its gradient", WHOLE_BATCH, dp.AveragesParameters
    ),
    naive("one-more-on-rank-1", NEVER_JOINED, WHOLE_BATCH, dp.SendsOnceMoreOnRank1),
    naive("another-order-on-rank-1", OTHER_ORDER, WHOLE_BATCH, dp.OtherOrderOnRank1),
    naive(
        "steps-apart",
        "goes on with the gradient of its own part",
        "all_ranks_take_the_same_step",
        dp.SendsNothing,
    ),
    overlap("no-hooks", "no collective during backward", STARTS, dp.Naive),
    overlap(
        "all-at-the-end",
        "when all gradients are there",
        STARTS,
        partial(reference.DataParallel, max_bytes=1e9),
    ),
    overlap("blocking", BLOCKED, WAITS, dp.Blocking),
    overlap("not-waiting", TOO_EARLY, WAITS, dp.NotWaiting),
    overlap("tied-twice", "sent once", "a_tied_weight_is_sent_once", dp.SendingTiedWeightsTwice),
    overlap(
        "frozen-not-sent",
        "its frozen.weight is not that of rank 0",
        "frozen_parameters_come_from_rank_0_and_stay",
        dp.BroadcastingWhatIsTrained,
    ),
    overlap(
        "frozen-hooked",
        "doesn't require gradient. A frozen parameter",
        "frozen_parameters_come_from_rank_0_and_stay",
        dp.HookingFrozenParameters,
    ),
    overlap(
        "none-reduced",
        "NoneType.* whose grad is None: pass over it",
        "a_parameter_without_a_gradient_keeps_nobody_waiting",
        dp.Naive,
    ),
    overlap(
        "buffers-not-sent",
        "its offset is not that of rank 0",
        "buffers_come_from_rank_0",
        dp.BroadcastingParameters,
    ),
    overlap(
        "last-batch-remembered",
        "on rank . of 2, batch 2",
        "a_second_batch",
        dp.RememberingTheLastBatch,
    ),
    bucketed("summed", SUMMED, WHOLE_BATCH, dp.SummingBuckets),
    bucketed(
        "each-its-own",
        "every parameter is sent on its own",
        BUCKETS,
        lambda module, mb: dp.Bucketed(module, 0),
    ),
    bucketed("one-for-all", "a bucket holds more", BUCKETS, lambda module, mb: dp.Bucketed(module, None)),
    bucketed("mebibytes", "a bucket holds more than bucket_size_mb", BUCKETS, dp.BucketsOfMebibytes),
    bucketed("from-the-first", "begin with the last parameter", BUCKETS, dp.BucketsFromTheFirst),
    bucketed(
        "unfilled-not-sent", NEVER_SENT, "a_bucket_with_a_parameter_without_a_gradient", dp.BucketsThatForget
    ),
    bucketed("counts-kept", "batch 2.*they were never sent", "a_second_batch", dp.BucketsThatKeepCounting),
    bucketed("sent-at-the-end", "no collective during backward", STARTS, dp.BucketsSentAtTheEnd),
    bucketed("blocking", BLOCKED, WAITS, dp.BlockingBuckets),
    bucketed("not-waited-for", TOO_EARLY, WAITS, dp.BucketsNotWaitedFor),
    sharding(
        "not-sent", "its owner did not send it", "parameters_are_those_of_one_adamw", sharded.NotSending
    ),
    sharding(
        "whole",
        "exp_avg for 80 of 80 values",
        "each_rank_keeps_its_part_of_the_state",
        sharded.whole_optimizer,
    ),
    sharding(
        "settings-lost",
        "settings of a group are lost",
        "groups_keep_their_settings",
        sharded.ForgettingSettings,
    ),
    sharding(
        "late-groups-lost", "nobody updates it", "a_group_added_after_a_step", sharded.ForgettingLateGroups
    ),
    sharding(
        "learning-rate-kept",
        "did not reach the optimizer inside",
        "a_learning_rate_changed_between_steps",
        sharded.KeepingTheLearningRate,
    ),
    sharding(
        "made-at-once",
        "when the rank owns its first parameter",
        "more_ranks_than_parameters",
        sharded.MadeAtOnce,
    ),
    sharding(
        "without-closure",
        "called its closure 0 times",
        "a_closure_is_called_once_and_its_loss_returned",
        sharded.WithoutClosure,
    ),
    fsdp("whole-everywhere", "shared out by rows", "each_rank_keeps_its_rows", sharded.WholeEverywhere),
    fsdp(
        "wrapped-names",
        "without what the wrapper puts before them",
        "gathered_parameters_are_those_that_were_wrapped",
        sharded.WrappedNames,
    ),
    fsdp(
        "with-padding",
        r"\(8, 4\).*cut off",
        "gathered_parameters_are_those_that_were_wrapped",
        sharded.WithPadding,
    ),
    fsdp(
        "batch-turned-around",
        "the output of the wrapped model",
        "outputs_are_those_of_the_whole_model",
        sharded.TurningTheBatchAround,
    ),
    fsdp(
        "local-norms",
        "norm.weight.*that of its own part",
        "a_step_is_that_of_one_process",
        sharded.LocalNorms,
    ),
    fsdp("summed", SUMMED, "a_step_on_three_ranks", sharded.SummingShards),
    fsdp("gradients-kept", "after 2 steps", "a_second_batch", sharded.AddingWhatIsThere),
    fsdp("hoarding", "still holds whole weights", "whole_weights_are_freed", sharded.Hoarding),
    fsdp(
        "cast-after-the-gather",
        "cast the shard to compute_dtype first",
        "compute_dtype",
        sharded.CastingAfterTheGather,
    ),
    fsdp("summed-in-bf16", "summed in bf16", "compute_dtype", sharded.ReducingInBf16),
]
