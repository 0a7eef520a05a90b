"""The graded tests of several devices can be passed, notice wrong strategies, say what is wrong, and end."""

import ast
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import rank_failures
import torch
from graded_support import data_parallel, ranks, sharded_weights
from graded_support.submission import ADAPTERS
from mutants.distributed import MUTANTS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
GRADED = ROOT / "tests/graded"
PROBLEMS = sorted({mutant.problem for mutant in MUTANTS})
FILES = [GRADED / f"test_{problem}.py" for problem in PROBLEMS]


def run_graded(*arguments, **environment):
    """The tests of all five problems, pending as they are, in a process of their own."""
    paths = os.pathsep.join([str(HERE), str(GRADED)])
    environment = os.environ | {"CS_SYSTEMS_RUN_PENDING": "1", "PYTHONPATH": paths} | environment
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, *map(str, FILES)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def names_of_tests():
    """(problem, name without test_) of every graded test function."""
    return {
        (problem, node.name.removeprefix("test_"))
        for problem, path in zip(PROBLEMS, FILES, strict=True)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_reference_passes_them_all():
    result = run_graded(**{ADAPTERS: str(HERE / "distributed_reference.py")})
    assert result.returncode == 0, result.stdout[-3000:]
    last = result.stdout.splitlines()[-1]
    assert int(re.match(r"(\d+) passed in", last)[1]) >= len(names_of_tests()), last


def test_every_mutant_is_noticed_and_told_what_is_wrong(tmp_path):
    journal = tmp_path / "journal.jsonl"
    plugins = ("-p", "mutants.plugin", "-p", "mutants.ranks_plugin")
    result = run_graded(*plugins, MUTANTS="mutants.distributed", MUTANTS_JOURNAL=str(journal))
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr[-3000:]
    outcomes = [json.loads(line) for line in journal.read_text().splitlines()]
    silent = []
    for mutant in MUTANTS:
        test = f"test_{mutant.problem}.py::test_{mutant.noticed_by}"
        lines = [line for line in outcomes if (line["mutant"], line["test"]) == (mutant.name, test)]
        # Every parameter of a test must notice it.
        if not lines or not all(re.search(mutant.says, line["message"].split("\n")[0]) for line in lines):
            silent.append((mutant.problem, mutant.name, [line["message"][:500] for line in lines]))
    assert silent == []


def test_every_graded_test_is_named_by_a_mutant():
    assert names_of_tests() == {(mutant.problem, mutant.noticed_by) for mutant in MUTANTS}


def test_the_toy_of_data_parallelism_is_exact_in_fp32():
    kinds = [
        data_parallel.Kind(tied=tied, frozen=frozen) for tied in (False, True) for frozen in (False, True)
    ]
    for kind in kinds:
        for rank in range(3):
            for number in range(2):
                model = data_parallel.Toy(kind, seed=0)
                token_ids, targets = data_parallel.make_batch(rank, number)
                data_parallel.compute_loss(model(token_ids), targets).backward()
                truth = data_parallel.gradients_of(kind, 0, (rank,), number)
                assert all(
                    torch.equal(truth[name].float(), dict(model.named_parameters())[name].grad)
                    for name in truth
                )
                # Each layer has a gradient, and different ones on different ranks.
                other = data_parallel.gradients_of(kind, 0, ((rank + 1) % 3,), number)
                assert all(truth[name].any() and not torch.equal(truth[name], other[name]) for name in truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_toy_with_shared_weights_is_exact_even_in_bf16(dtype):
    for rank in range(3):
        gradients = []
        for this in (dtype, torch.float64):
            model = sharded_weights.Toy().to(this)
            token_ids, factors = sharded_weights.make_batch(rank, 0)
            sharded_weights.compute_loss(model(token_ids), factors).backward()
            gradients.append([parameter.grad.double() for parameter in model.parameters()])
        for found, expected in zip(*gradients, strict=True):
            assert torch.equal(found, expected)
            assert expected.any()
            assert expected.abs().max() < 32


def test_no_relu_of_the_second_batch_is_near_its_kink():
    for num_ranks in (2, 3):
        model = sharded_weights.Toy().double()
        model.load_state_dict(sharded_weights.train_alone(range(num_ranks)))
        for rank in range(num_ranks):
            token_ids, _ = sharded_weights.make_batch(rank, 1)
            x = model.norm(model.embedding(token_ids))
            before = model.hidden(x)
            # What fp32 may make of it is within 1e-6; a sum of zeros is zero in any order.
            is_empty = x.abs() @ model.hidden.weight.abs().T == 0
            assert (is_empty | (before.abs() > 1e-5)).all()


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (
            rank_failures.one_joins_no_more,
            r"rank 1 waits .* rank 0 never joined: collective 2 of rank 1 is broadcast",
        ),
        (rank_failures.one_raises, r"on rank 1 of 2: ValueError: two lines. Try this\n"),
        (rank_failures.one_crashes, r"rank 0 waits .* rank 1: its process ended without a word.*\. Try this"),
        (rank_failures.one_never_ends, r"rank 1 of 2 did not finish within 2 s"),
    ],
)
def test_a_rank_that_fails_ends_the_test_with_its_reason(work, said, monkeypatch):
    monkeypatch.delenv(ADAPTERS, raising=False)
    monkeypatch.setattr(ranks, "COLLECTIVE_LIMIT_S", 1.0)
    if work is rank_failures.one_never_ends:
        monkeypatch.setattr(ranks, "TIME_LIMIT_S", 2.0)
    with pytest.raises(pytest.fail.Exception, match=said):
        ranks.run_on_ranks(work, advice="Try this")


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ranks_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import rank_failures; from graded_support.ranks import run_on_ranks; "
        f"run_on_ranks(rank_failures.both_loop, folder={str(tmp_path)!r})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(GRADED)])}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) as parent:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
