"""The number format of a training step, and the process-wide settings under which it runs fast on a CPU."""

import ctypes
import functools
import sys
from types import TracebackType

import torch

from offrl.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_GIGABYTE = 1 << 30


class Precision:
    """Context of a training step; may be entered any number of times.

    ``float32``: products go through the faster of PyTorch's two CPU libraries where it is as exact (see
    ``onednn_is_exact``); on a GPU nothing changes. ``bf16``: autocast to bfloat16; parameters, losses, gradients and
    optimizer stay float32.

    Args:
        name: float32 or bf16.
        device: where the step runs.

    Raises:
        ConfigError: the device computes bfloat16 in emulation only, which is slower than float32.
    """

    def __init__(self, name: str, device: str) -> None:
        self.kind = torch.device(device).type
        if name not in ("float32", "bf16"):
            raise ConfigError(f"precision must be float32 or bf16, got {name!r}")
        if name == "bf16" and not _has_bf16(self.kind):
            raise ConfigError(
                f"precision bf16 needs hardware for it, which this {self.kind} lacks: leave it out"
            )
        self.autocast = torch.autocast(self.kind, torch.bfloat16, enabled=name == "bf16")
        self.onednn = self.kind == "cpu" and onednn_is_exact()
        self._outer = "highest"
        if self.kind == "cpu":
            _keep_freed_memory()

    def __enter__(self) -> None:
        if self.onednn:
            self._outer = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")
        self.autocast.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.autocast.__exit__(kind, error, trace)
        if self.onednn:
            torch.set_float32_matmul_precision(self._outer)


def _has_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


@functools.cache
def onednn_is_exact() -> bool:
    """Whether this CPU multiplies float32 matrices through oneDNN without losing bits.

    PyTorch sends them there only at matmul precision "medium", which permits bfloat16. A chip with AVX-512 but without
    bfloat16 tiles (AMX) still computes in float32, on some twice as fast as by default; an error no larger than the
    default's shows it.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 256, 256, generator=generator) for _ in range(2))
    exact, errors = a.double() @ b.double(), []
    try:
        outer = torch.get_float32_matmul_precision()
    except RuntimeError:  # the user set the library's own switches: leave them alone
        return False
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            errors.append(float((torch.bmm(a, b) - exact).abs().max()))
    finally:
        torch.set_float32_matmul_precision(outer)
    return errors[1] <= 4 * errors[0]


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed: asking the kernel for fresh pages costs up to a third of a step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _GIGABYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIGABYTE)
