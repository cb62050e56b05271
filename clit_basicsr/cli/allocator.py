"""How the C library's allocator treats large blocks while a command runs; the library alone leaves it as it is.

glibc asks the system for every block above 32 MB at most, and gives it back when it is freed. Feature maps of large
pictures are above that, and clearing the pages of each new map takes as long as computing it: of a 512 x 512 picture,
EDSR-baseline takes 10.9 s in place of 19.7 s of CPU with the thresholds below. Freed memory of up to KEPT bytes stays
with the process for the next map; what is larger goes back. Processes that are forked (workers of data loaders) inherit
this, which suits them: they too free and allocate the same sizes again and again.
"""

from __future__ import annotations

import ctypes
import os

# Blocks up to LARGEST come from the heap: a map of 64 channels of the largest picture that is encoded whole has half
# of that. At the end of the heap at most KEPT bytes stay unused.
LARGEST, KEPT = 256 << 20, 512 << 20
# The parameters' numbers in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Set by users who have chosen for themselves.
CHOICES = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES')


def keep_freed_memory() -> bool:
    """Sets the thresholds of glibc's allocator for this process; does nothing with another C library or allocator, or
    where one of :data:`CHOICES` is in the environment.

    Returns:
        Whether they are set.
    """
    if any(name in os.environ for name in CHOICES):
        return False
    try:
        libc = ctypes.CDLL(None)
        has_mallopt = hasattr(libc, 'gnu_get_libc_version') and hasattr(libc, 'mallopt')
    except (OSError, TypeError):  # no shared C library; Windows
        return False
    return has_mallopt and bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST) and libc.mallopt(M_TRIM_THRESHOLD, KEPT))
