"""The second path to NVIDIA's GPUs: regions that TVM has schedules for become CUDA text, the others go by Triton.

`target="tvm_cuda:a100"`. Everything but the rules and the compiler is the triton backend's: steps, states, artifacts,
launches through the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from irx.backends.regions.asked import Chooser
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.regions.steps import Lowering
from irx.backends.triton.backend import Lowers, TritonBackend
from irx.backends.triton.compiling import Binary
from irx.backends.triton.kernel import Kernel
from irx.backends.tvm_cuda.compiling import missing, try_kernels
from irx.backends.tvm_cuda.kernel import CudaKernel
from irx.backends.tvm_cuda.rules import rules
from irx.target import Device


class TvmCudaBackend(TritonBackend):
    """As the triton backend; kernels of TVM come with the CUDA text they were made of, `<symbol>.cu`."""

    name = "tvm_cuda"

    def missing(self, device: Device) -> str | None:
        """TVM, NVRTC or Triton, or a GPU that they make binaries for."""
        return missing(device)

    def lowering(self, device: Device, refused: Mapping[str, str], schedule: Chooser = default_schedule) -> Lowers:
        """Regions one by one: kernels of TVM join no chain."""
        return Lowering(rules(refused), Choices(device, schedule), refused)

    def compiled(self, kernels: Iterable[Kernel], device: Device) -> tuple[dict[str, Binary], dict[str, str]]:
        """The binaries by symbol, and why there is none."""
        return try_kernels(kernels, device)

    def replaces(self, kernel: Kernel) -> bool:
        """Where TVM makes no kernel of a region, Triton does."""
        return isinstance(kernel, CudaKernel)


BACKEND = TvmCudaBackend()
