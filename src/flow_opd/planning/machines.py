"""The cards that a plan compares: memory and dense bf16 rate, from the makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
RESERVE = 1.0  # GiB that no tensor gets, assumed: CUDA context, cuBLAS workspaces, gaps of the allocator


@dataclass(frozen=True)
class Machine:
    """One card."""

    name: str
    memory: float  # GiB that PyTorch reports as the card's capacity, a little below the label
    tflops: float  # 10^12 bf16 multiplications or additions a second, dense, accumulated in float32


MACHINES = (
    # NVIDIA A100 Tensor Core GPU data sheet (2022): 312 TFLOPS BF16; 624 only with sparsity.
    Machine("A100 80GB", 79.1, 312.0),
    Machine("A100 40GB", 39.4, 312.0),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 TFLOPS BF16 with sparsity, half of it dense.
    Machine("H100 SXM", 79.1, 989.4),
    # H800 SXM: an H100 with NVLink cut from 900 to 400 GB/s and less FP64; the same BF16 rate and memory.
    Machine("H800 SXM", 79.1, 989.4),
    # NVIDIA Ada GPU architecture white paper, appendix A: 165.2 TFLOPS BF16 with FP32 accumulation, dense.
    Machine("RTX 4090", 23.6, 165.2),
)


def gpu_hours(flops: float, machine: Machine, utilisation: float) -> float:
    """Returns the hours of one card for `flops` operations at a share `utilisation` of its peak rate."""
    return flops / (machine.tflops * 1e12 * utilisation) / 3600
