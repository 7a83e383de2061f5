"""How much arithmetic a training step holds, how fast this machine could do it, and what takes the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from foundation.benchmarks.rates import least_seconds
from foundation.training.module import MultiTaskModule

MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}


def step_of(module: MultiTaskModule, batch: Any) -> Callable[[], None]:
    """Forward and backward of one batch."""
    head = module.heads[module.names[0]]

    def step() -> None:
        head(module.encoder(batch), batch).abs().mean().backward()
        module.zero_grad()

    return step


def matrix_products(step: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products of some work that is not compiled."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matrix_product_rate(device: str) -> float:
    """Floating-point operations per second of a large product of square matrices in single precision."""
    size = MATRIX_SIZE[device]
    one, other = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    return 2 * size**3 / least_seconds(lambda: one @ other, device, repeats=5)


def dominant_operators(step: Callable[[], None], device: str, count: int = 3) -> list[dict[str, Any]]:
    """The operators, on a GPU the kernels, that take most time, with their share of it."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        step()
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU an operator has the time of its kernels, which stand there as well.
    events = [e for e in profiled.key_averages() if not on_gpu or e.device_type == DeviceType.CUDA]
    times = sorted(((getattr(event, kind), event.key) for event in events), reverse=True)
    total = sum(time for time, _ in times)
    return [{"name": name, "share": time / total} for time, name in times[:count]]
