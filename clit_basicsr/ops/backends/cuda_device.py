"""Whether a GPU can run the CUDA kernels, and why not."""

from collections.abc import Callable
from functools import cache

import torch

from clit_basicsr.ops.backends.constant import constant_result


@constant_result
def device_reason(device: torch.device | None) -> str | None:
    """Why a CUDA device, by default the current one, cannot run the kernels."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return f'its kernels need compute capability 8.0, which {torch.cuda.get_device_name(device)} does not have'
    return None


@constant_result
def no_device() -> str | None:
    if torch.version.hip:
        return f'its kernels are for NVIDIA GPUs, and this torch is for ROCm {torch.version.hip}'
    return None if torch.cuda.is_available() else f'torch {torch.__version__} finds no CUDA device'


@constant_result
def gpus() -> tuple[int, ...]:
    """The compute capabilities (90 is 9.0) of all GPUs that can run the kernels: one library serves them."""
    found = {torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())}
    return tuple(10 * major + minor for major, minor in sorted(found) if (major, minor) >= (8, 0))


def trial_reason(device: torch.device | None, wrong: Callable[[torch.device], list[str]]) -> str | None:
    """Why kernels that are built and loaded do not run on a device after all: the driver may be older than the
    compiler, or unable to translate the kernels for a newer GPU.

    Args:
        wrong: launches kernels on a device and names those whose results are wrong.
    """
    if torch.cuda.is_current_stream_capturing():  # a graph: nothing can be tried, and it was warmed up before
        return None
    index = None if device is None else device.index
    return _trial(torch.cuda.current_device() if index is None else index, wrong)


@cache
def _trial(index: int, wrong: Callable[[torch.device], list[str]]) -> str | None:
    device = torch.device('cuda', index)
    torch.cuda.synchronize(device)  # an error of earlier work is raised here, as what it is
    try:
        names = wrong(device)
    except RuntimeError as e:
        return f'a trial launch on {torch.cuda.get_device_name(device)} failed: {e}'
    return (
        f'a trial launch on {torch.cuda.get_device_name(device)} gave wrong results: {" and ".join(names)}'
        if names
        else None
    )
