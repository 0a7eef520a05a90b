"""One case of the main job: build the model, time the passes of a training step, say what was seen."""

import dataclasses
import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cs_systems import cli
from cs_systems import device as devices
from cs_systems.bench.peak import PeakRate, peak_rate
from cs_systems.bench.record import BenchmarkRecord, Provenance
from cs_systems.bench.workload import EXPERIMENT, PASSES, TOTAL, Case, WorkloadConfig
from cs_systems.estimator.flops import backward_flops, forward_flops
from cs_systems.estimator.memory import MemoryCase
from cs_systems.estimator.parameters import num_parameters
from cs_systems.estimator.peak import advise, predict_peak
from cs_systems.kernels.apply import MODEL_KERNELS, apply_kernels, make_loss, parts_for
from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.apply import apply_attention, apply_checkpointing
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy
from cs_systems.model.transformer import TransformerLM
from cs_systems.optim import AdamW
from cs_systems.timing.contention import CoreLoad
from cs_systems.timing.host_memory import available_bytes, peak_rss_bytes
from cs_systems.timing.stats import Samples
from cs_systems.timing.timer import Measurement, measure_passes

_THREADS_PER_CORE = 4  # beyond this, threads only wait for one another, for minutes

_RESIDENT_PER_TENSOR_BYTE = 1.3
"""Resident memory for each byte of tensors on a CPU, where the allocator keeps freed pieces: 1.27 to 1.31
in the committed runs of small and medium."""

_CREDIBLE_FRACTION = 1.1
"""A small matrix in the cache may beat the square ones that the peak is measured with, but not by more."""

_SYSTEM_BYTES = 2**30
"""Left to the rest of the machine, which would otherwise stand still long before a case is killed."""


# BEGIN INSTRUCTOR
def _triton_adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    from cs_systems.kernels.adamw import FusedAdamW  # Triton exists on Linux only

    return FusedAdamW(parameters)


# END INSTRUCTOR


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": AdamW,
    "torch": torch.optim.AdamW,
    "torch-fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    # BEGIN INSTRUCTOR
    "triton": _triton_adamw,
    # END INSTRUCTOR
}


class TrainingStep:
    """A model with its optimizer and inputs, and the passes of one step as callables for the timer."""

    def __init__(self, config: ModelConfig, workload: WorkloadConfig, device: torch.device) -> None:
        self.workload, self.device = workload, device
        torch.manual_seed(workload.seed)
        self.model = build_model(config, workload.param_dtype, device)
        apply_attention(self.model, workload.attention)
        # BEGIN INSTRUCTOR
        apply_kernels(self.model, model_kernels(self.model, workload))
        # END INSTRUCTOR
        apply_checkpointing(self.model, workload.checkpoint_blocks)
        self.outputs: Callable[[Tensor], Tensor] = self.model
        self.criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy
        # BEGIN INSTRUCTOR
        if workload.loss_kernel is not None:
            self.outputs, self.criterion = make_loss(self.model, workload.loss_kernel, workload.compile)
        # END INSTRUCTOR
        if workload.compile and self.outputs is self.model:
            self.model.compile()
        self.optimizer = OPTIMIZERS[workload.optimizer](self.model.parameters())
        # fp16 gradients underflow without loss scaling; torch refuses to unscale gradients stored as fp16.
        use_scaler = workload.precision == "fp16" and workload.param_dtype == "fp32"
        self.scaler = torch.amp.GradScaler(device.type, enabled=use_scaler)
        self.loss: Tensor | None = None

    def passes(self) -> dict[str, Callable[[], None]]:
        """The passes that the mode times, in order."""
        return {name: getattr(self, name) for name in PASSES[self.workload.mode]}

    def prepare(self) -> None:
        """Draw new tokens and drop old gradients: work of a step that no pass should be charged for."""
        config = self.model.config
        shape = (self.workload.batch_size, config.context_length + 1)
        tokens = torch.randint(config.vocab_size, shape, device=self.device)
        self.token_ids, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.loss = None
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self) -> None:
        """Logits and loss; builds the graph for backward unless the mode is forward alone."""
        with (
            torch.set_grad_enabled(self.workload.mode != "forward"),
            devices.autocast(self.device, self.workload.precision),
        ):
            self.loss = self.criterion(self.outputs(self.token_ids), self.targets)

    def backward(self) -> None:
        """Gradients of the (scaled) loss."""
        assert self.loss is not None
        self.scaler.scale(self.loss).backward()

    def optimizer_step(self) -> None:
        """Unscale where there is a scaler, and update the parameters."""
        self.scaler.step(self.optimizer)
        self.scaler.update()


# BEGIN INSTRUCTOR
def model_kernels(model: TransformerLM, workload: WorkloadConfig) -> list[str]:
    """The kernels for parts of the model: those asked for by name, or with `all` those it has a use for."""
    names = [name for name in workload.kernel_names if name in MODEL_KERNELS]
    return [name for name in names if workload.kernels != "all" or parts_for(model, name)]


# END INSTRUCTOR


def build_model(config: ModelConfig, param_dtype: str, device: torch.device) -> TransformerLM:
    """The model on `device` with parameters stored as `param_dtype`, never held twice on the way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(devices.DTYPES[param_dtype])
    try:
        with device:
            return TransformerLM(config)
    finally:
        torch.set_default_dtype(before)


def prepare_device(workload: WorkloadConfig) -> torch.device:
    """Choose the device and set what is set once a process: threads and the fp32 matmul precision.

    Raises:
        UnsupportedError: when the machine lacks what the workload asks for, whatever its size.
    """
    device = devices.choose_device(workload.device)
    devices.check_precision(device, workload.precision)
    devices.set_matmul_precision(workload.precision)
    _check_triton(device, workload)
    cores = os.cpu_count() or 1
    if workload.threads > _THREADS_PER_CORE * cores:
        raise devices.UnsupportedError(
            f"--threads {workload.threads}: this machine has {cores} cores; use {cores} or fewer"
        )
    if workload.threads:
        torch.set_num_threads(workload.threads)
    return device


def _check_triton(device: torch.device, workload: WorkloadConfig) -> None:
    missing = missing_for_triton(device.type)
    if missing is None:
        return
    if workload.attention == "flash":
        raise devices.UnsupportedError(f"--attention flash: {missing}; or use --attention flash-torch")
    # BEGIN INSTRUCTOR
    if workload.kernel_names:
        raise devices.UnsupportedError(f"--kernels {workload.kernels}: {missing}; or use --kernels off")
    if workload.optimizer == "triton":
        raise devices.UnsupportedError(f"--optimizer triton: {missing}; or use --optimizer torch-fused")
    # END INSTRUCTOR


def run_case(
    case: Case, device: torch.device, provenance: Provenance, on_step: Callable[[str, int, int], None]
) -> BenchmarkRecord:
    """Measure `case` in this process, which should be fresh: only the first case of a process is cold.

    A case that is predicted not to fit is not started, and one that runs out of memory becomes a row.
    """
    workload = case.workload
    memory_case = estimator_case(case, device)
    predicted = predict_peak(case.model, memory_case)
    metrics = {
        "num_parameters": num_parameters(case.model),
        "tokens_per_step": workload.batch_size * case.model.context_length,
        "predicted_peak_memory_bytes": predicted.peak_bytes,
        "predicted_peak_phase": predicted.peak_phase,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "fp32_matmul_bits": devices.fp32_matmul_bits(device),
        "graph_built": workload.mode != "forward",
    }

    def record(status, **fields):  # noqa: ANN001, ANN003, ANN202
        return BenchmarkRecord(EXPERIMENT, case.settings(), status, provenance, **fields)

    free = free_memory_bytes(device)
    if not fits(case, device, free):
        return record("skipped", reason=advice(case, device, free), metrics=metrics)
    rate = peak_rate(device, workload.precision, workload.param_dtype)
    baseline_bytes = peak_rss_bytes()
    devices.reset_peak_memory(device)
    try:
        step = TrainingStep(case.model, workload, device)
        load = CoreLoad.start()
        measured = measure_passes(
            step.passes(), case.timing,
            synchronize=devices.synchronizer(device), prepare=step.prepare, on_step=on_step,
        )  # fmt: skip
        metrics["other_load_cores"] = load.finish()
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        return record("oom", reason=f"ran out of memory: {advice(case, device, free)}", metrics=metrics)
    metrics["peak_memory_bytes"] = measured_peak_bytes(device, baseline_bytes)
    # Measured again, because whatever else ran during the first time would make every pass look too good.
    again = peak_rate(device, workload.precision, workload.param_dtype)
    rate = max(rate, again, key=lambda rate: rate.tflops_per_s or 0.0)
    samples = _with_total(measured.samples_s, workload)
    metrics |= _rates(case, samples, rate)
    metrics |= {
        "warmup_steps_done": len(measured.warmup_samples_s.get("forward", [])),
        "steps_done": len(samples.get("forward", [])),
        "optimizer_state_existed": bool(measured.warmup_samples_s) and workload.mode == "train-step",
    }
    fields = {
        "samples_s": samples,
        "warmup_samples_s": _with_total(measured.warmup_samples_s, workload),
        "metrics": metrics,
        "notes": [*measured.notes, *_remarks(step, measured), *_doubts(metrics["fraction_of_peak"])],
    }
    if measured.interrupted:
        done = f"{metrics['steps_done']} of {case.timing.steps} steps"
        return record("failed", reason=f"interrupted after {done}", **fields)
    return record("ok", **fields)


def fits(case: Case, device: torch.device, free_bytes: int | None) -> bool:
    """Whether the predicted peak of a case is within `free_bytes`; yes where those are not known."""
    predicted = predict_peak(case.model, estimator_case(case, device)).peak_bytes * _overhead(device)
    return free_bytes is None or predicted <= free_bytes


def advice(case: Case, device: torch.device, free_bytes: int | None) -> str:
    """What the case needs, and which flags would make it fit into `free_bytes`."""
    if free_bytes is None:
        return "try a smaller --batch-size"
    return advise(case.model, estimator_case(case, device), free_bytes, _overhead(device))


def _overhead(device: torch.device) -> float:
    return 1.0 if device.type == "cuda" else _RESIDENT_PER_TENSOR_BYTE


def free_memory_bytes(device: torch.device) -> int | None:
    """Memory a new case can have: what the driver, or this machine and its container, still offer."""
    gpu = devices.gpu_memory_bytes(device)
    if gpu:
        return gpu[0]
    available = available_bytes()
    return None if available is None else max(0, available - _SYSTEM_BYTES)


def measured_peak_bytes(device: torch.device, baseline_bytes: int | None) -> int | None:
    """Peak of the tensors on a GPU; on a CPU the growth of the process's peak resident memory."""
    if device.type != "cpu":
        return devices.peak_memory_bytes(device)
    peak = peak_rss_bytes()
    return None if peak is None or baseline_bytes is None else peak - baseline_bytes


def estimator_case(case: Case, device: torch.device) -> MemoryCase:
    """The case as the estimator sees it: the fields of the same names, and the device that was chosen."""
    shared = cli.only_fields(MemoryCase, dataclasses.asdict(case.workload))
    # BEGIN INSTRUCTOR
    shared["kernels"] = case.workload.kernel_names
    # END INSTRUCTOR
    return MemoryCase(
        **shared, seq_len=case.model.context_length, device_type="cuda" if device.type == "cuda" else "cpu"
    )


def _with_total(passes: dict[str, list[float]], workload: WorkloadConfig) -> dict[str, list[float]]:
    """Add the sum of the passes of each step, under the name of the mode."""
    if workload.mode not in TOTAL or not passes:
        return passes
    total: list[float] = [sum(step) for step in zip(*passes.values(), strict=True)]
    return passes | {TOTAL[workload.mode]: total}


def _rates(case: Case, samples: dict[str, list[float]], rate: PeakRate) -> dict:
    """Rates from the median of each pass. The optimizer does no matrix products, so it has no FLOP rate."""
    batch_size, seq_len = case.workload.batch_size, case.model.context_length
    tokens = batch_size * seq_len
    forward = forward_flops(case.model, batch_size, seq_len)
    backward = backward_flops(case.model, batch_size, seq_len)
    flops = {"forward": forward, "backward": backward} | dict.fromkeys(TOTAL.values(), forward + backward)
    medians = {name: Samples.from_values(values).median for name, values in samples.items() if values}
    tflops = {name: flops[name] / median / 1e12 for name, median in medians.items() if name in flops}
    peak = rate.tflops_per_s
    return {
        "tokens_per_s": {name: tokens / median for name, median in medians.items()},
        "tflops_per_s": tflops,
        "fraction_of_peak": {name: value / peak for name, value in tflops.items()} if peak else {},
        "peak_tflops_per_s": peak,
        "peak_source": rate.source,
    }


def _doubts(fraction_of_peak: dict[str, float]) -> list[str]:
    if max(fraction_of_peak.values(), default=0.0) <= _CREDIBLE_FRACTION:
        return []
    return [
        "a pass beat the measured peak: something slowed the measurement of the peak, so ignore 'of peak'"
    ]


def _remarks(step: TrainingStep, measured: Measurement) -> list[str]:
    remarks = []
    if step.workload.mode == "forward":
        remarks.append(
            "forward alone: no graph was built, so less memory and time than a forward in training"
        )
    if step.loss is not None and measured.samples_s and not torch.isfinite(step.loss):
        remarks.append(f"the loss of the last step is {step.loss.item()}: this precision overflowed")
    if step.scaler.is_enabled() and step.scaler.get_scale() < 2.0**16:
        remarks.append("the gradient scaler skipped at least one optimizer step, which makes it look fast")
    return remarks
