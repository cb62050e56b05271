"""How the C library's allocator treats large blocks while a command runs; the library alone leaves it as it is.

glibc asks the system for every block above 32 MB at most, and gives it back when it is freed. Feature maps of large
pictures are above that, and clearing the pages of each new map takes as long as computing it: of a 512 x 512 picture,
EDSR-baseline takes 11.5 s in place of 20.3 s of CPU with the thresholds below, at the same peak of 631 MB (glibc 2.36).
Without the padding KEPT and RETURNED would have to be one number, and either peak (830 MB at 160 MB and above) or time
(13.2 s at 64 MB) would be higher. Training is left alone: few of its blocks are above 32 MB,
and it spends a few per cent of its time in the system. Processes that are forked inherit the thresholds.
"""

from __future__ import annotations

import ctypes
import os

# Blocks up to LARGEST come from the heap: a map of 64 channels of the largest picture that is encoded whole has half
# of that. Where more than RETURNED bytes are unused at the end of the heap, all of it above KEPT goes back; the heap
# grows by KEPT at a time, and pages that nobody has touched take no memory.
LARGEST, KEPT, RETURNED = 256 << 20, 128 << 20, 64 << 20
# The parameters' numbers in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Set by users who have chosen for themselves.
CHOICES = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES')


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
    choice = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: RETURNED, M_TOP_PAD: KEPT}
    return has_mallopt and all(libc.mallopt(name, value) for name, value in choice.items())
