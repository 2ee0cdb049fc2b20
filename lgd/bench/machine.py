"""What a figure was measured on, what the machine can do at most, and what a call takes of its memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from lgd import __version__
from lgd.words import counted

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def machine_facts(device: torch.device) -> dict[str, str]:
    """Name the device, the processor and the versions, by what they are."""
    on_cuda = device.type == "cuda"
    processor = _processor()
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else processor,
        "processor": f"{processor}, {counted(os.cpu_count() or 1, 'core')}, "
        f"{counted(torch.get_num_threads(), 'thread')}",
        "python": platform.python_version(),
        "lgd": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_ceiling(device: torch.device, dtype: torch.dtype, side: int = 0) -> float:
    """Measure what a large matrix product reaches, the most that a step could.

    Args:
        device: where.
        dtype: of the matrices.
        side: of the square matrices; 0 for 8192 on CUDA and 1024 elsewhere.

    Returns:
        Floating-point operations a second, at the fastest of several products: other work only slows them.
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(8):
        synchronize(device)
        begin = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds)


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of `call`'s products and convolutions, two a multiply-add.

    What is pointwise, deformable convolutions and RoI alignment are not counted. What is compiled runs as
    it is written meanwhile: generated code does not tell what it does.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        call()
    total: int = counter.get_total_flops()
    return total


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `call` takes at its peak beyond what is taken before it; None where that cannot be told.

    On CUDA those of torch's tensors; on the CPU those of the process, libraries' scratch memory included.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not reset_peak_resident():
        return None
    before = read_status("VmRSS")
    call()
    return max(0, read_status("VmHWM") - before)


def reset_peak_resident() -> bool:
    """Hand free memory back and let the process's peak begin anew; False where the system cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory hides how much is taken again
        _CLEAR.write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def read_status(field: str, process_id: int | None = None) -> int:
    """Bytes in a field of /proc/ID/status, such as VmRSS and VmHWM, the peak of it; by default ours."""
    path = Path(f"/proc/{process_id}/status") if process_id else _STATUS
    match = re.search(rf"^{field}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    assert match, f"no {field} in {path}"
    return 1024 * int(match[1])


def take_turns(
    runs: dict[str, Callable[[], float]], *, num_turns: int, num_warm_up: int = 2
) -> dict[str, float]:
    """Let several runs take turns, so that what else the machine does hits all of them alike.

    Args:
        runs: each does its work once and returns its seconds.
        num_turns: turns that count.
        num_warm_up: turns before these.

    Returns:
        The median of each run's seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(num_turns + num_warm_up):
        for name, call in runs.items():
            duration = call()
            if turn >= num_warm_up:
                seconds[name].append(duration)
    return {name: statistics.median(each) for name, each in seconds.items()}
