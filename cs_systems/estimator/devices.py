"""Datasheet figures of GPUs, by the exact name that the driver reports. An unknown name has no figures.

Rates are dense (public pages often print the twice as large rates with sparsity) and accumulate in fp32 (on
GeForce cards half the rate of fp16 accumulation). Names are matched whole: "RTX 3070 Laptop GPU" is not an
RTX 3070, and "H100" alone may be three different cards.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Peak rates of one GPU. None where the hardware lacks the type."""

    names: tuple[str, ...]
    """Names under which the driver reports the card."""
    tflops_fp16: float
    """Dense fp16 tensor-core rate in TFLOP/s; bf16 has the same where it exists."""
    tflops_fp32: float
    """fp32 rate outside the tensor cores in TFLOP/s."""
    has_bf16_and_tf32: bool
    """Compute capability 8.0 or later; tf32 runs at half the fp16 rate."""
    bandwidth_gb_per_s: int | float
    """Memory bandwidth in 10^9 bytes a second."""
    tdp_w: int | float
    """Power limit as sold."""
    source: str
    """Where the figures were read."""
    from_memory: tuple[str, ...] = ()
    """Fields that were not read from a source and want checking."""

    def peak_tflops_per_s(self, precision: str) -> int | float | None:
        """Dense matrix-product rate in fp32, tf32, bf16 or fp16."""
        wide = self.has_bf16_and_tf32
        return {
            "fp32": self.tflops_fp32,
            "tf32": self.tflops_fp16 / 2 if wide else None,
            "bf16": self.tflops_fp16 if wide else None,
            "fp16": self.tflops_fp16,
        }[precision]


_ANALYSIS = "cli99/llm-analysis, gpu_configs"
_TORCH = "torch 2.13, torch/_inductor/analysis/device_info.py"
_VIEWER = "hahnyuan/LLM-Viewer, hardware_params.py"
_SPEC = "ohdoking/gpu_spec, nvidia_gpu.csv"
_CATALOG = "RajBhope/gpu-runtime-predictor, gpu_catalog.json"

DEVICES = (
    Device(("Tesla V100-SXM2-16GB",), 125, 15.7, False, 900, 300, f"{_ANALYSIS}; {_CATALOG}"),
    Device(("NVIDIA A100-SXM4-40GB",), 312, 19.5, True, 1555, 400, f"{_ANALYSIS}; {_TORCH}"),
    Device(("NVIDIA A100-SXM4-80GB",), 312, 19.5, True, 2039, 400, f"{_ANALYSIS}; {_TORCH}", ("tdp_w",)),
    Device(("NVIDIA A100 80GB PCIe",), 312, 19.5, True, 1935, 300, _ANALYSIS, ("tdp_w", "tflops_fp32")),
    Device(("NVIDIA A40",), 149.7, 37.4, True, 696, 300, _VIEWER),
    Device(("NVIDIA RTX A5000",), 111.1, 27.8, True, 768, 230, f"vendor datasheet; {_SPEC}"),
    Device(("NVIDIA RTX A6000",), 154.8, 38.7, True, 768, 300, f"{_ANALYSIS}; {_VIEWER}; {_SPEC}"),
    Device(("NVIDIA H100 80GB HBM3",), 989.4, 66.9, True, 3350, 700, f"{_ANALYSIS}; {_TORCH}"),
    Device(("NVIDIA H100 PCIe",), 756, 51.2, True, 2000, 350, f"{_ANALYSIS}; {_VIEWER}"),
    Device(("NVIDIA H200",), 989.4, 66.9, True, 4800, 700, "alibaba/InferSim, hardware/gpu.py"),
    Device(("NVIDIA GeForce RTX 3090",), 71.2, 35.58, True, 936, 350, _SPEC, ("tflops_fp16",)),
    Device(("NVIDIA GeForce RTX 4090",), 165.2, 82.58, True, 1008, 450, _SPEC),
    Device(("NVIDIA GeForce RTX 3070",), 40.6, 20.31, True, 448, 220, _SPEC, ("tflops_fp16",)),
    Device(("Tesla T4", "NVIDIA T4"), 65, 8.1, False, 320, 70, _CATALOG),
    Device(("NVIDIA L4",), 121, 30.3, True, 300, 72, f"{_TORCH} (rates); public comparison pages"),
)


def find_device(name: str) -> Device | None:
    """The card that the driver calls `name`, or None: a similar name is no evidence."""
    return next((device for device in DEVICES if name in device.names), None)
