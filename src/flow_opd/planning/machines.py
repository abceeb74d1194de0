"""The cards that a plan compares: memory and dense rates, from the makers' data sheets."""

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
    float32_tflops: float  # the same in float32, without tensor cores

    @property
    def tf32_tflops(self) -> float:
        """The same in float32 on tensor cores, which round to TF32: half of the bf16 rate on all of these."""
        return self.tflops / 2


MACHINES = (
    # NVIDIA A100 Tensor Core GPU data sheet (2022): 312 TFLOPS BF16; 624 only with sparsity.
    Machine("A100 80GB", 79.1, 312.0, 19.5),
    Machine("A100 40GB", 39.4, 312.0, 19.5),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 TFLOPS BF16 with sparsity, half of it dense.
    Machine("H100 SXM", 79.1, 989.4, 66.9),
    # H800 SXM: an H100 with NVLink cut from 900 to 400 GB/s and less FP64; the same BF16 rate and memory.
    Machine("H800 SXM", 79.1, 989.4, 66.9),
    # NVIDIA Ada GPU architecture white paper, appendix A: 165.2 TFLOPS BF16 with FP32 accumulation, dense.
    Machine("RTX 4090", 23.6, 165.2, 82.6),
)
