"""The tree of an LMDB, checked before the library follows it.

LMDB trusts its pages. A flipped bit in one of them ends the process with a bus error, or gives the value of another
key, which no checksum of a value can tell. Layout: ``lmdb.h`` and ``mdb.c`` of LMDB 0.9, data version 1, on a machine
with 64 bits and little-endian numbers; other files are refused by the library when it opens them.
"""

import mmap
import struct
from itertools import pairwise
from os import path as osp

_META = struct.Struct('<24x48xIHHQQQQQQQ')  # of a meta page after its header: the main database, last page, transaction
_META_AT = (0, 1)
_PAGE = struct.Struct('<QHHHH')  # number, unused, flags, lower and upper end of the free space
_NODE = struct.Struct('<HHHH')  # low and high half of a size or a page number, flags, length of the key
_NUMBER = struct.Struct('<Q')
_BRANCH, _LEAF = 1, 2
_INLINE, _ELSEWHERE = 0, 1  # flags of a node: where its value lies
_EMPTY = 2**64 - 1
_LAST_KEY = b'\xff' * 512  # longer than any
_MAX_DEPTH = 32  # LMDB's own limit


def check_tree(data_file: str, page_size: int) -> None:
    """Follows every branch to the leaves; reads no value.

    Afterwards each key is found, and its value lies inside the file in pages that belong to nothing else.

    Args:
        data_file: ``data.mdb``, which the library opened.
        page_size: bytes.

    Raises:
        ValueError: what is wrong.
        OSError: the file cannot be read.
    """
    with open(data_file, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        _Walk(pages, page_size, osp.getsize(data_file) // page_size).check()


class _Walk:
    def __init__(self, pages: mmap.mmap, page_size: int, count: int):
        self.pages, self.page_size, self.count = pages, page_size, count
        self.extents: list[tuple[int, int]] = []  # first page and the one after the last
        self.entries = 0

    def check(self) -> None:
        metas = [_META.unpack_from(self.pages, at * self.page_size + _PAGE.size) for at in _META_AT]
        _, flags, depth, _, _, _, entries, root, last, _ = max(metas, key=lambda meta: meta[-1])
        if flags or depth > _MAX_DEPTH:
            raise ValueError('the first pages are damaged')
        self.count = min(self.count, last + 1)
        if root != _EMPTY:
            self._page(root, depth, None, None)
        if self.entries != entries:
            raise ValueError(f'{self.entries} of {entries} keys are there')
        self.extents.sort()
        for (_, end), (first, _) in pairwise(self.extents):
            if first < end:
                raise ValueError(f'page {first} belongs to two keys')

    def _page(self, number: int, depth: int, low: bytes | None, high: bytes | None) -> None:
        """A page and what is below it; its keys are at least ``low`` and below ``high``."""
        self._take(number, 1)
        start = number * self.page_size
        own, _, flags, lower, upper = _PAGE.unpack_from(self.pages, start)
        expected = (number, _LEAF if depth == 1 else _BRANCH)
        if (own, flags) != expected or not _PAGE.size < lower <= upper <= self.page_size or lower % 2:
            raise ValueError(f'page {number} is damaged')
        offsets = struct.unpack_from(f'<{(lower - _PAGE.size) // 2}H', self.pages, start + _PAGE.size)
        if min(offsets) < upper or max(offsets) + _NODE.size > self.page_size:
            raise ValueError(f'page {number} is damaged')
        nodes = [self._node(number, start + offset) for offset in offsets]
        # the first key of a branch stands for everything below the second
        keys = [key for key, *_ in nodes[depth > 1 :]]
        in_order = all(a < b for a, b in pairwise(keys))
        if not in_order or (keys and not (low or b'') <= keys[0] <= keys[-1] < (high or _LAST_KEY)):
            raise ValueError(f'the keys of page {number} are not in order')
        if depth == 1:
            for _, size, flags, data in nodes:
                self._value(number, size, flags, data)
            self.entries += len(nodes)
            return
        below = [size | flags << 32 for _, size, flags, _ in nodes]
        for child, first, after in zip(below, [low, *keys], [*keys, high], strict=True):
            self._page(child, depth - 1, first, after)

    def _node(self, page: int, at: int) -> tuple[bytes, int, int, int]:
        """Key, size or low bits of a page number, flags, and where the value begins."""
        low, high, flags, length = _NODE.unpack_from(self.pages, at)
        end = at + _NODE.size + length
        if end > (page + 1) * self.page_size:
            raise ValueError(f'page {page} is damaged')
        return self.pages[end - length : end], low | high << 16, flags, end

    def _value(self, page: int, size: int, flags: int, at: int) -> None:
        room = (page + 1) * self.page_size - at
        if flags not in (_INLINE, _ELSEWHERE) or room < (_NUMBER.size if flags == _ELSEWHERE else size):
            raise ValueError(f'page {page} is damaged')
        if flags == _ELSEWHERE:
            (first,) = _NUMBER.unpack_from(self.pages, at)
            self._take(first, -(-(_PAGE.size + size) // self.page_size))

    def _take(self, first: int, count: int) -> None:
        if first < len(_META_AT) or first + count > self.count:
            raise ValueError(f'page {first} does not exist')
        self.extents.append((first, first + count))
