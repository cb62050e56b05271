"""What ``basicsr info`` says without a file: versions, and which backends of the local attention can run here."""

import os
import platform
import subprocess

import torch

from clit_basicsr import __version__, weights
from clit_basicsr.ops import backends
from clit_basicsr.ops.backends import native
from clit_basicsr.ops.backends.contract import Call


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Names and versions of what results depend on."""
    try:
        compiler = subprocess.run(
            [*(native.compiler() or ['none']), '--version'], capture_output=True, text=True
        ).stdout
    except OSError:
        compiler = 'none'
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    return {
        'clit_basicsr': __version__,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'compiler': (compiler.splitlines() or ['none'])[0],
        'processor': f'{_processor()}, {os.cpu_count()} cores',
        'gpu': gpu,
    }


def report() -> str:
    """The whole page. Builds the kernels that can run here if they have not been built yet."""
    lines = [f'{name:14}{value}' for name, value in versions().items()]
    lines += ['', 'backends of the local attention, fastest first:']
    for backend in backends.BACKENDS:
        cause = backend.reason(Call())
        lines.append(f'{backend.NAME:14}{"available" if cause is None else "not available: " + cause}')
    lines += ['', *(f'{f"{name} kernels":14}{native.find(name) or "not built"}' for name in native.LIBRARIES)]
    lines += ['', f'networks, {weights.describe()}']
    return '\n'.join(lines)
