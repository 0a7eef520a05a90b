"""What goes wrong on ranks, for test_distributed_graded.py: functions that are run on each of two."""

import os
import pathlib

import torch
import torch.distributed as dist


def one_joins_no_more(adapters, rank):
    dist.all_reduce(torch.ones(3))
    if rank.rank == 1:
        dist.broadcast(torch.ones(3), 0)


def one_raises(adapters, rank):
    if rank.rank == 1:
        raise ValueError("two\nlines")
    dist.all_reduce(torch.ones(3))


def one_crashes(adapters, rank):
    dist.all_reduce(torch.ones(3))
    if rank.rank == 1:
        os._exit(1)
    dist.all_reduce(torch.ones(3))


def one_never_ends(adapters, rank):
    while rank.rank == 1:
        pass


def both_loop(adapters, rank, *, folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    while True:
        pass
