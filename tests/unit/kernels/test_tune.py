"""The race of tiles without a clock and a GPU: results checked, winners stored, failures told."""

import json

import pytest
import torch

from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from cs_systems.kernels import tune

pytest.importorskip("triton", reason="needs Triton (Linux)")

GPU = torch.device("cuda", 0)
TIMES = {2: 0.004, 3: 0.002, 4: 0.003}
"""Seconds by num_stages, which the fake measurements go by."""


@pytest.fixture
def racing(device):
    """The module, imported only where kernels can run."""
    from cs_systems.kernels import flash_tuning

    return flash_tuning


@pytest.fixture
def file(racing, tmp_path, monkeypatch):
    """A machine with a GPU that measures nothing, and a tuning file of this test's own."""
    from cs_systems.kernels import tuning

    file = tmp_path / "tuning.json"
    monkeypatch.setenv("CS_SYSTEMS_TUNING", str(file))
    for module in ("device", "kernels.tuning"):
        monkeypatch.setattr(f"cs_systems.{module}.device_name", lambda device: "Fake GPU")
    monkeypatch.setattr("cs_systems.device.choose_device", lambda name: GPU)
    monkeypatch.setattr(racing, "compute_capability", lambda device: (9, 0))
    monkeypatch.setattr(racing, "candidates", fake_candidates)
    monkeypatch.setattr(racing, "measure", lambda case, config, *_: TIMES[config.num_stages])
    tuning._configs.cache_clear()
    yield file
    tuning._configs.cache_clear()


def fake_candidates(kernel, head_dim, dtype, capability):
    from cs_systems.kernels.flash_configs import TileConfig

    assert (dtype, capability) == (torch.bfloat16, (9, 0))
    return [TileConfig(64, 128, 4, num_stages) for num_stages in TIMES]


def make_case(racing, **changes):
    settings = {"kernel": "forward", "head_dim": 16, "dtype": "fp32", "is_causal": True}
    return racing.Case(**settings | {"batch_size": 1, "num_heads": 2, "seq_len": 48} | changes)


def config_of(racing, **changes):
    return racing.TileConfig(**{"block_m": 32, "block_n": 16, "num_warps": 4, "num_stages": 2} | changes)


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
@pytest.mark.parametrize(("dtype", "is_causal", "head_dim"), [("fp32", True, 16), ("bf16", False, 20)])
def test_a_candidate_is_checked_and_then_timed(racing, device, kernel, dtype, is_causal, head_dim):
    case = make_case(racing, kernel=kernel, dtype=dtype, is_causal=is_causal, head_dim=head_dim)
    timed = []

    def timer(call):
        timed.append(call)
        return 2.5

    assert racing.measure(case, config_of(racing), torch.device(device), timer) == 0.0025
    assert len(timed) == 1


@pytest.mark.parametrize(("launch", "kernel"), [("launch_dq", "dq"), ("launch_dkdv", "dkdv")])
@pytest.mark.parametrize("mistake", ["writes nothing", "is off by a factor"])
def test_a_wrong_result_is_never_timed(racing, device, monkeypatch, launch, kernel, mistake):
    right = getattr(racing, launch)

    def wrong(*args):
        if mistake == "is off by a factor":
            right(*args)
            (args[7] if kernel == "dq" else args[8]).mul_(1.1)

    monkeypatch.setattr(racing, launch, wrong)
    with pytest.raises(RuntimeError, match=r"wrong result: (nan|0\.1) of"):
        racing.measure(make_case(racing, kernel=kernel), config_of(racing), torch.device(device), pytest.fail)


def test_failures_are_rows_and_the_fastest_of_the_rest_is_chosen(racing, monkeypatch):
    from triton.runtime.errors import OutOfResources

    outcomes = {
        1: 0.003,
        2: OutOfResources(300000, 232448, "shared memory"),
        3: 0.002,
        4: RuntimeError("PassManager\nfailed"),
        5: 0.0025,
    }

    def measure(case, config, *_):
        outcome = outcomes[config.num_stages]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(racing, "measure", measure)
    configs = [config_of(racing, num_stages=number) for number in outcomes]
    rows = racing.tune_case(make_case(racing, seq_len=1000, head_dim=64), configs, GPU, pytest.fail)
    assert [row["status"] for row in rows] == ["", "failed", "chosen", "failed", ""]
    assert "shared memory, Required: 300000" in rows[1]["reason"]
    assert rows[3]["reason"] == "RuntimeError: PassManager failed"
    # Two products of 2 * 64 FLOPs for each of the 2 heads' half million visible scores, in 2 ms.
    assert rows[2]["flops_per_s"] == pytest.approx(2 * 2 * 64 * 2 * 500_000 / 0.002)


def test_winners_are_stored_shown_and_not_measured_again(file, capsys, monkeypatch, racing):
    from cs_systems.kernels.tuning import cached_config

    words = ["--kernel", "forward,dkdv", "--head-dim", "64,128", "--causal", "on"]
    assert tune.main(words) == EXIT_OK
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert (summary["device"], summary["file"]) == ("Fake GPU", str(file))
    assert [(row["kernel"], row["head_dim"]) for row in summary["chosen"]] == [
        ("forward", 64), ("forward", 128), ("dkdv", 64), ("dkdv", 128)
    ]  # fmt: skip
    assert out.count("chosen\n") == 4
    assert "[4/4] dkdv, head_dim 128, bf16, causal: 64x128 w4 s3, 2 ms" in err
    config = {"block_m": 64, "block_n": 128, "num_warps": 4, "num_stages": 3}
    key = {"head_dim": 128, "dtype": "bf16", "is_causal": True}
    assert cached_config("flash_dkdv", key, GPU) == config

    monkeypatch.setattr(racing, "measure", lambda case, config, *_: 0.001 * config.num_stages)
    assert tune.main(words) == EXIT_OK
    out, err = capsys.readouterr()
    assert json.loads(out)["chosen"] == []
    assert err.count("stored before, not measured again") == 4
    assert cached_config("flash_dkdv", key, GPU) == config
    assert tune.main([*words, "--retune"]) == EXIT_OK
    assert cached_config("flash_dkdv", key, GPU) == config | {"num_stages": 2}


def test_a_kernel_that_never_runs_fails_the_command_and_stores_nothing(file, capsys, monkeypatch, racing):
    def measure(case, config, *_):
        if case.head_dim == 80:
            raise RuntimeError("does not compile")
        return 0.001

    monkeypatch.setattr(racing, "measure", measure)
    assert tune.main(["--kernel", "dq", "--head-dim", "64,80", "--causal", "off"]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert "failed: RuntimeError: does not compile" in out
    assert "none of 3 candidates runs" in err
    assert [entry["key"]["head_dim"] for entry in json.loads(file.read_text())["entries"]] == [64]


def test_ctrl_c_keeps_what_was_chosen(file, capsys, monkeypatch, racing):
    def measure(case, config, *_):
        if case.kernel == "dkdv":
            raise KeyboardInterrupt
        return 0.001

    monkeypatch.setattr(racing, "measure", measure)
    assert tune.main(["--head-dim", "64", "--causal", "on"]) == EXIT_INTERRUPTED
    assert [entry["kernel"] for entry in json.loads(file.read_text())["entries"]] == [
        "flash_forward",
        "flash_dq",
    ]
    assert "interrupted" in capsys.readouterr().err


def test_launches_look_for_what_is_stored(racing, device, monkeypatch):
    from cs_systems.kernels import flash_attention

    looked_up = []
    monkeypatch.setattr(flash_attention, "cached_config", lambda *name: looked_up.append(name[:2]))
    q, k, v = (torch.randn(1, 2, 20, 16, device=device, requires_grad=True) for _ in range(3))
    flash_attention.flash_attention(q, k, v, is_causal=True).sum().backward()
    cases = [make_case(racing, kernel=kernel) for kernel in ("forward", "dq", "dkdv")]
    assert looked_up == [(f"flash_{case.kernel}", case.key) for case in cases]


def test_before_anything_is_measured_the_file_must_be_usable(file, capsys):
    file.write_text("my notes")
    with pytest.raises(SystemExit) as caught:
        tune.main([])
    assert caught.value.code == EXIT_USAGE
    assert "is damaged; delete it, or name another" in capsys.readouterr().err
    assert file.read_text() == "my notes"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--head-dim", "64,256"], "--head-dim 256: the kernels are for head sizes up to 128"),
        (["--kernel", "backward"], "'backward' is not one of forward, dq, dkdv"),
        (["--seq-len", "0"], "'0' is not a whole number of at least 1"),
        (["--causal", "maybe"], "'maybe' is not one of on, off"),
    ],
)
def test_bad_flags_are_refused_in_one_line(file, capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        tune.main(words)
    err = capsys.readouterr().err
    assert (caught.value.code, err.count("\n")) == (EXIT_USAGE, 1)
    assert said in err
    assert not file.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    assert tune.main([]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no GPU" in err


@pytest.mark.gpu
def test_a_race_on_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CS_SYSTEMS_TUNING", str(tmp_path / "tuning.json"))
    words = [
        "--kernel",
        "forward",
        "--head-dim",
        "64",
        "--causal",
        "on",
        "--seq-len",
        "512",
        "--batch-size",
        "1",
    ]
    assert tune.main(words) == EXIT_OK
    (chosen,) = json.loads(capsys.readouterr().out.splitlines()[-1])["chosen"]
    assert 0 < chosen["time_s"] < 0.1
