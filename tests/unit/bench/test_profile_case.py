"""A case under the profiler: what is recorded, what is told beside it, and what becomes of one that fails."""

import dataclasses
from collections import Counter

import pytest
import torch

from cs_systems import device as devices
from cs_systems.bench import profile_case as module
from cs_systems.bench import training
from cs_systems.bench.profile_case import ProfiledRun, is_under_nsys, predicted_by_phase, profile_case
from cs_systems.bench.training import TrainingStep, estimator_case
from cs_systems.bench.workload import Case, WorkloadConfig
from cs_systems.estimator.parameters import num_parameters
from cs_systems.estimator.peak import predict_peak
from cs_systems.model.config import ModelConfig
from cs_systems.timing.timer import Measurement, TimingConfig
from cs_systems.tracing import annotate as annotations
from cs_systems.tracing.attribute import paths
from cs_systems.tracing.memory_table import peak_table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.trace import MEASURED, PHASES, STEP, read_facts

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=200, context_length=16, d_model=64, num_layers=2, num_heads=2)
STEPS = 2
ACCURACY = 0.06


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_nsys(monkeypatch):
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)


def make_case(**workload):
    return Case("toy", CONFIG, WorkloadConfig(**workload), TimingConfig(warmup_steps=1, steps=STEPS))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Training steps, recorded with their memory: the run as it was returned, and the trace as it is read."""
    path = tmp_path_factory.mktemp("profile") / "toy.json.gz"
    torch.set_num_threads(1)
    run = profile_case(make_case(), CPU, path, "python profiling/run.py", memory=True)
    return run, read_trace(path)


def test_the_facts_say_what_was_run_and_lie_beside_the_trace(recorded):
    run, _ = recorded
    assert run.reason is None
    assert read_facts(run.path) == run.facts
    facts = dataclasses.asdict(run.facts)
    expected = {
        "model": "toy", "num_layers": 2, "num_heads": 2, "d_head": 32, "batch_size": 4, "seq_len": 16,
        "steps": STEPS, "mode": "train-step", "precision": "fp32", "attention": "naive",
        "checkpoint_blocks": 0, "command": "python profiling/run.py", "device": devices.device_name(CPU),
    }  # fmt: skip
    assert {name: facts[name] for name in expected} == expected


def test_the_timer_is_the_median_of_plain_steps(monkeypatch, tmp_path):
    def measure(passes, config, *, on_step, **others):
        on_step("measuring", 1, 1)
        return Measurement({name: [3.0, 1.0, 2.0] for name in passes}, {}, False, [])

    monkeypatch.setattr(module, "measure_passes", measure)
    monkeypatch.setattr(module, "record_with_torch", lambda *arguments: None)
    heard = []
    run = profile_case(make_case(), CPU, tmp_path / "a.json.gz", "", on_step=lambda *step: heard.append(step))
    assert run.facts.timer_s == {"forward": 2.0, "backward": 2.0, "optimizer_step": 2.0}
    assert heard == [("measuring", 1, 1)]


def test_the_timer_ran_without_ranges(recorded):
    run, _ = recorded
    assert list(run.facts.timer_s) == ["forward", "backward", "optimizer_step"]
    assert all(0 < seconds < 5 for seconds in run.facts.timer_s.values())


def test_the_base_is_parameters_buffers_and_two_moments_of_each_parameter(recorded):
    run, _ = recorded
    table_bytes = 2 * CONFIG.context_length * (CONFIG.d_model // CONFIG.num_heads // 2) * 4  # cos and sin
    assert run.facts.base_bytes == 3 * 4 * num_parameters(CONFIG) + table_bytes


def test_the_predictions_are_those_of_the_estimator_by_phase(recorded):
    run, _ = recorded
    case = make_case()
    predicted = predict_peak(CONFIG, estimator_case(case, CPU))
    assert run.facts.predicted_bytes == predicted_by_phase(case, CPU)
    assert set(run.facts.predicted_bytes) <= set(PHASES)
    assert {"backward", "optimizer"} <= set(run.facts.predicted_bytes)
    assert max(run.facts.predicted_bytes.values()) == predicted.peak_bytes


def test_every_phase_appears_once_a_step_and_all_lies_in_measured(recorded):
    _, trace = recorded
    (measured,) = (item for item in trace.ranges if item.name == MEASURED)
    counts = Counter(item.name for item in trace.ranges)
    assert {name: counts[name] for name in (STEP, *PHASES)} == dict.fromkeys((STEP, *PHASES), STEPS)
    for item in trace.ranges:
        assert measured.start_ns <= item.start_ns <= item.end_ns <= measured.end_ns
    by_time = [item.name for item in sorted(trace.ranges, key=lambda item: item.start_ns)]
    assert [name for name in by_time if name in PHASES] == [*PHASES] * STEPS
    assert counts["block"] == counts["block (backward)"] == STEPS * CONFIG.num_layers
    found = set(paths(trace))
    assert (MEASURED, STEP, "forward", "block", "attention", "attention softmax") in found
    assert (MEASURED, STEP, "backward", "block (backward)", "feed-forward (backward)") in found


def test_the_recorded_peak_is_close_to_the_predicted_one(recorded):
    run, trace = recorded
    peak_bytes = run.facts.base_bytes + max(event.total_bytes for event in trace.memory)
    assert max(run.facts.predicted_bytes.values()) == pytest.approx(peak_bytes, rel=ACCURACY)
    (row,) = peak_table([(trace, run.facts)]).rows
    assert row["peak_bytes"] == peak_bytes
    assert row["ratio"] == pytest.approx(1, abs=ACCURACY)


def test_the_total_does_not_fall_below_zero(recorded):
    """Gradients from before the recording would be released in it."""
    assert min(event.total_bytes for event in recorded[1].memory) >= 0


@pytest.mark.parametrize("mode", ["forward", "forward-backward"])
def test_other_modes_have_the_phases_that_they_have(mode, tmp_path):
    run = profile_case(make_case(mode=mode), CPU, tmp_path / "a.json.gz", "")
    trace = read_trace(run.path)
    names = {item.name for item in trace.ranges}
    phases = [*PHASES[:2], *(["backward"] if mode != "forward" else [])]
    assert [name for name in PHASES if name in names] == phases
    assert list(run.facts.timer_s) == ["forward", "backward"][: len(phases) - 1]
    assert max(run.facts.predicted_bytes.values()) > 0
    assert not trace.memory


# What cannot run


def test_a_case_that_cannot_fit_is_not_started(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "free_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(module, "TrainingStep", lambda *arguments: pytest.fail("was started"))
    run = profile_case(make_case(), CPU, tmp_path / "a.json.gz", "")
    assert run == ProfiledRun("toy", tmp_path / "a.json.gz", None, run.reason)
    assert "needs" in run.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["outputs", "backward", "optimizer_step"])
def test_running_out_of_memory_is_a_reason_and_leaves_no_facts(where, monkeypatch, tmp_path):
    def run_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def name_passes(step):  # the plain steps fitted, with the profiler there is less
        setattr(step, where, run_out)

    monkeypatch.setattr(module, "name_passes", name_passes)
    run = profile_case(make_case(), CPU, tmp_path / "a.json.gz", "")
    assert run.facts is None
    assert run.reason.startswith("ran out of memory: ")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_swallowed(monkeypatch, tmp_path):
    def fail(*arguments):
        raise RuntimeError("a real bug")

    monkeypatch.setattr(training, "build_model", fail)
    with pytest.raises(RuntimeError, match="a real bug"):
        profile_case(make_case(), CPU, tmp_path / "a.json.gz", "")


def test_ctrl_c_in_the_plain_steps_ends_the_case(tmp_path):
    def press_ctrl_c(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_case(make_case(), CPU, tmp_path / "a.json.gz", "", on_step=press_ctrl_c)
    assert list(tmp_path.iterdir()) == []


# Under nsys


def test_nsys_is_known_by_its_session(monkeypatch):
    assert not is_under_nsys()
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    assert is_under_nsys()


def test_under_nsys_the_measured_steps_alone_are_captured_and_no_trace_is_written(monkeypatch, tmp_path):
    events = []

    class ToolRange:
        """What nsys would hear of ranges."""

        def __init__(self, name):
            self.name = name

        def __enter__(self):
            events.append(self.name)
            # Backward on a thread of its own could not be told from the ranges of the calling one.
            assert not torch._C._is_multithreading_enabled()

        def __exit__(self, *error):
            if self.name == MEASURED:
                events.append("end of measured")

    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(annotations, "_tool_range", ToolRange)
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: pytest.fail("a second profiler"))
    monkeypatch.setattr(module.devices, "synchronizer", lambda device: lambda: events.append("wait"))
    monkeypatch.setattr(module.devices, "start_capture", lambda: events.append("start"))
    monkeypatch.setattr(module.devices, "stop_capture", lambda: events.append("stop"))
    original = TrainingStep.prepare
    monkeypatch.setattr(TrainingStep, "prepare", lambda step: (events.append("prepare"), original(step)))

    run = profile_case(make_case(), CPU, tmp_path / "a.json.gz", "")
    assert run.reason is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.run.json"]
    assert read_facts(run.path) == run.facts
    at = events.index("start")
    plain, captured = events[:at], events[at + 1 :]
    assert plain.count("prepare") == 1 + STEPS + 1  # warm-up, the plain steps, one with ranges
    assert [name for name in plain if name in PHASES] == [*PHASES]
    told = ("prepare", MEASURED, STEP, *PHASES, "wait", "end of measured", "stop")
    step = ["prepare", STEP, *PHASES, "wait"]
    assert [name for name in captured if name in told] == [MEASURED, *step * STEPS, "end of measured", "stop"]
    assert "block (backward)" in captured
