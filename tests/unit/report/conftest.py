"""Made-up records for the tests of reports: no measurement, only its form."""

import pytest

from cs_systems.bench.record import BenchmarkRecord, Provenance

TOTAL = {"forward-backward": "forward_backward", "train-step": "train_step"}


@pytest.fixture
def make_record():
    """make_record(model="small", mode="train-step", forward=[...], backward=[...], ...) -> BenchmarkRecord.

    Samples of a pass are given by its name, warm-up as warmup={pass: [...]}; every other keyword that is not
    listed below replaces or adds a setting of the case.
    """

    def make(
        model="small",
        *,
        status="ok",
        reason=None,
        metrics=None,
        notes=(),
        warmup=None,
        experiment="training_step",
        device="Some CPU @ 2.00GHz",
        device_type="cpu",
        commit="abc1234def56",
        dirty=False,
        time_utc="2026-01-02T03:04:05+00:00",
        torch="2.13.0",
        **given,
    ):
        samples = {
            name: given.pop(name) for name in ("forward", "backward", "optimizer_step") if name in given
        }
        mode = ("forward", "forward-backward", "train-step")[max(0, len(samples) - 1)]
        if status != "ok" and not samples:
            mode = "train-step"
        shape = {"small": (768, 12), "medium": (1024, 24)}.get(model, (128, 2))
        case = {
            "model": model, "vocab_size": 10_000, "context_length": 128, "d_model": shape[0],
            "num_layers": shape[1], "num_positions": 128, "mode": mode, "batch_size": 4,
            "precision": "fp32", "param_dtype": "fp32", "attention": "naive", "compile": False,
            "checkpoint_blocks": 0, "optimizer": "adamw", "device": "auto", "threads": 0, "seed": 0,
            "warmup_steps": len(next(iter((warmup or {"": []}).values()))),
            "steps": max(map(len, samples.values()), default=10), "max_seconds": 120.0,
        }  # fmt: skip
        case |= given
        if "context_length" in given:
            case["num_positions"] = given["context_length"]
        if samples and mode in TOTAL:
            samples[TOTAL[mode]] = [sum(step) for step in zip(*samples.values(), strict=True)]
        known = {"num_parameters": {"small": 128_625_408, "medium": 423_183_360}.get(model, 590_464)}
        provenance = Provenance(
            command="python benchmark.py", commit=commit, dirty=dirty, time_utc=time_utc, device=device,
            device_type=device_type, threads=2, versions={"torch": torch},
        )  # fmt: skip
        return BenchmarkRecord(
            experiment, case, status, provenance, reason, samples, warmup or {}, known | (metrics or {}),
            list(notes),
        )  # fmt: skip

    return make
