"""What the process takes from the machine: peak memory, and an allocator that keeps what it got."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks instead of returning them to the kernel after every step.

    A training step frees and takes again tensors of many megabytes; by default glibc hands each back
    and the kernel zeroes new pages for it, which costs up to a fifth of a step on the CPU. Affects
    the whole process, so only programs should call it: Regraft's own commands and benchmarks do.

    Returns:
        Whether it took effect (glibc on Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim, threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        return bool(mallopt(trim, 2**31 - 1) and mallopt(threshold, 2**30))
    return False


def reset_peak() -> None:
    """Start measuring the peak from here, as far as the platform allows."""
    gc.collect()
    # What earlier work freed and the allocator kept would count as this one's.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak since `reset_peak`: GPU memory where one is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return 0
