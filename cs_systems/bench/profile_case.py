"""Run one case under a profiler: time it plainly, name its parts, then record some steps.

The plain timing comes first, in the same process: what a profiler reports includes the profiler, and the
difference between the two is the first thing to look at in a profile.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cs_systems import device as devices
from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.training import TrainingStep, advice, estimator_case, fits, free_memory_bytes
from cs_systems.bench.workload import Case
from cs_systems.estimator.peak import predict_peak
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.stats import Samples
from cs_systems.timing.timer import measure_passes
from cs_systems.tracing.annotate import annotate
from cs_systems.tracing.annotate_model import annotate_model
from cs_systems.tracing.trace import MEASURED, PHASES, STEP, RunFacts, write_facts


@dataclass(frozen=True)
class ProfiledRun:
    """What became of a case."""

    label: str
    path: pathlib.Path
    """The trace; under nsys, where its export is expected."""
    facts: RunFacts | None
    reason: str | None = None
    """Why there is no trace."""


def is_under_nsys() -> bool:
    """Whether nsys started this process and records it; torch.profiler must not then: both want the GPU."""
    return "NSYS_PROFILING_SESSION_ID" in os.environ


def profile_case(
    case: Case,
    device: torch.device,
    path: pathlib.Path,
    command: str,
    *,
    memory: bool = False,
    on_step: Callable[[str, int, int], None] | None = None,
) -> ProfiledRun:
    """Record `case` to `path` (.json.gz, or under nsys only the facts beside it) and time it plainly before.

    Args:
        case: what to run; its warm-up steps are run before the timing and before the recording.
        device: where.
        path: of the trace; the facts go beside it.
        command: what the user typed.
        memory: record every allocation too; on a GPU also for PyTorch's memory viewer (.pickle).
        on_step: told (phase, steps done, steps planned).

    A case that cannot fit, or runs out of memory, has a reason instead of a trace.
    """
    free = free_memory_bytes(device)
    if not fits(case, device, free):
        return ProfiledRun(case.label, path, None, advice(case, device, free))
    try:
        step = TrainingStep(case.model, case.workload, device)
        synchronize = devices.synchronizer(device)
        load = CoreLoad.start()
        measured = measure_passes(
            step.passes(), case.timing, synchronize=synchronize, prepare=step.prepare, on_step=on_step
        )
        if measured.interrupted:
            raise KeyboardInterrupt
        timer_s = {name: Samples.from_values(values).median for name, values in measured.samples_s.items()}
        facts = dataclasses.replace(
            describe_run(case, device, command), timer_s=timer_s, base_bytes=bytes_to_start_with(step)
        )
        name_passes(step)
        # Backward on the calling thread, so that nsys's own tables join its kernels to our ranges, too.
        with torch.autograd.set_multithreading_enabled(False):
            if is_under_nsys():
                record_with_nsys(step, case.timing.steps, synchronize)
            else:
                record_with_torch(step, case.timing.steps, synchronize, path, memory)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        return ProfiledRun(case.label, path, None, f"ran out of memory: {advice(case, device, free)}")
    facts = dataclasses.replace(facts, other_load_percent=round(100 * (load.finish() or 0)))
    write_facts(path, facts)
    return ProfiledRun(case.label, path, facts)


def describe_run(case: Case, device: torch.device, command: str) -> RunFacts:
    """The numbers that FLOPs and counts per pass follow from, and where they come from."""
    origin = collect_provenance(command, device)
    return RunFacts(
        model=case.label,
        num_layers=case.model.num_layers,
        num_heads=case.model.num_heads,
        d_head=case.model.d_head,
        batch_size=case.workload.batch_size,
        seq_len=case.model.context_length,
        steps=case.timing.steps,
        mode=case.workload.mode,
        precision=case.workload.precision,
        attention=case.workload.attention,
        device=origin.device,
        command=command,
        checkpoint_blocks=case.workload.checkpoint_blocks,
        predicted_bytes=predicted_by_phase(case, device),
        commit=(origin.commit or "unknown")[:12] + (" with changes" if origin.dirty else ""),
        time_utc=origin.time_utc,
        torch=origin.versions.get("torch") or "",
        threads=origin.threads,
    )


def predicted_by_phase(case: Case, device: torch.device) -> dict[str, int]:
    """The predicted peak of each phase of a step; in forward all is still to come, at its end the loss."""
    predicted = predict_peak(case.model, estimator_case(case, device)).phases
    of_phase: dict[str, int] = {}
    for name, num_bytes in predicted.items():
        phase = next(phase for phase in PHASES if name.startswith(phase))
        of_phase[phase] = max(num_bytes, of_phase.get(phase, 0))
    return of_phase


def bytes_to_start_with(step: TrainingStep) -> int:
    """Parameters, buffers and the state of the optimizer after the steps of the timer."""
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    tensors = [*step.model.parameters(), *step.model.buffers(), *filter(torch.is_tensor, state)]
    storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def name_passes(step: TrainingStep) -> None:
    """Put ranges around the passes of `step` and the parts of its model."""
    annotate_model(step.model)
    step.outputs = annotate("forward")(step.outputs)
    step.criterion = annotate("loss")(step.criterion)
    step.backward = annotate("backward")(step.backward)
    step.optimizer_step = annotate("optimizer")(step.optimizer_step)


def run_steps(step: TrainingStep, steps: int, synchronize: Callable[[], None]) -> None:
    """`steps` steps, all inside one range; the GPU is done before it closes."""
    with annotate(MEASURED):
        for _ in range(steps):
            step.prepare()
            with annotate(STEP):
                for run in step.passes().values():
                    run()
                synchronize()


def record_with_nsys(step: TrainingStep, steps: int, synchronize: Callable[[], None]) -> None:
    """Let nsys, started with --capture-range=cudaProfilerApi, record the measured steps alone."""
    run_steps(step, 1, synchronize)  # the first annotated step is a warm-up of its own
    devices.start_capture()
    run_steps(step, steps, synchronize)
    devices.stop_capture()


def record_with_torch(
    step: TrainingStep, steps: int, synchronize: Callable[[], None], path: pathlib.Path, memory: bool
) -> None:
    """Record the measured steps with every activity that this machine supports."""
    with torch.profiler.profile(profile_memory=memory):  # the first use of the profiler is slow
        run_steps(step, 1, synchronize)
    step.prepare()  # gradients from before would be released in the recording, and its total fall below zero
    if memory:
        devices.start_memory_history(step.device)
    with torch.profiler.profile(profile_memory=memory) as profiler:
        run_steps(step, steps, synchronize)
    if memory:
        devices.save_memory_history(step.device, path.with_name(path.name.replace(".json.gz", ".pickle")))
    profiler.export_chrome_trace(str(path))
