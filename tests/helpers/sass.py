"""What the compiler made of the CUDA kernels: a reader of their machine code that needs no disassembler.

Instructions of compute capability 7.0 and later have 16 bytes: the operation is in the lowest 12 bits, the width of a
load or store in bits 73 to 75, the distance of a jump, in units of 4 bytes from the next instruction, in bits 34 to 81
and, its lowest byte, 16 to 23.
"""

import re
import struct
from collections import Counter
from typing import NamedTuple

MOVES = {0x981: 'LDG', 0x986: 'STG', 0x983: 'LDL', 0x387: 'STL'}
PRODUCT, JUMP = 0x23C, 0x947
WIDTHS = (1, 1, 2, 2, 4, 8, 16, 16)
CUDA, REGISTERS = 190, 0x2F  # an ELF file's machine; an attribute in its section .nv.info


class Kernel(NamedTuple):
    """Attributes:
    registers: per thread.
    moves: ('LDG', bytes) and so on -> how many such instructions; L is local memory, where registers are spilled.
    products: instructions of the tensor cores.
    spills_in_loops: instructions on local memory within the innermost loops.
    """

    registers: int
    moves: Counter[tuple[str, int]]
    products: int
    spills_in_loops: int


def kernels(library: bytes) -> dict[int, dict[str, Kernel]]:
    """Architecture (90 is sm_90) -> mangled name -> kernel, of a library that nvcc linked with --no-compress."""
    found: dict[int, dict[str, Kernel]] = {}
    for match in re.finditer(rb'\x7fELF\x02\x01', library):
        elf = memoryview(library)[match.start() :]
        if struct.unpack_from('<H', elf, 18)[0] == CUDA:
            flags = struct.unpack_from('<I', elf, 48)[0]
            # Since CUDA 13 the second byte holds it, before the first.
            architecture = flags >> 8 & 0xFF if flags >> 8 & 0xFF >= 50 else flags & 0xFF
            found.setdefault(architecture, {}).update(_kernels(elf))
    return found


def _kernels(elf: memoryview) -> dict[str, Kernel]:
    table, count, names_at = (struct.unpack_from(kind, elf, at)[0] for kind, at in (('<Q', 40), ('<H', 60), ('<H', 62)))
    headers = [struct.unpack_from('<IIQQQQIIQQ', elf, table + 64 * i) for i in range(count)]
    content = [elf[header[4] : header[4] + header[5]] for header in headers]
    names = [_text(content[names_at], header[0]) for header in headers]
    section = dict(zip(names, content, strict=True))
    symbols = [_text(section['.strtab'], symbol[0]) for symbol in struct.iter_unpack('<IBBHQQ', section['.symtab'])]
    registers = {symbols[index]: number for index, number in _register_counts(section.get('.nv.info', elf[:0]))}
    code = {name.removeprefix('.text.'): content for name, content in section.items() if name.startswith('.text.')}
    return {name: _kernel(content, registers[name]) for name, content in code.items()}


def _text(strings: memoryview, at: int) -> str:
    return bytes(strings[at : at + 1000]).partition(b'\0')[0].decode()


def _register_counts(info: memoryview):
    """(symbol, registers) of each kernel."""
    at = 0
    while at < len(info):
        kind, attribute, size = struct.unpack_from('<BBH', info, at)
        if attribute == REGISTERS:
            yield struct.unpack_from('<II', info, at + 4)
        at += 4 + (size if kind == 4 else 0)


def _kernel(code: memoryview, registers: int) -> Kernel:
    moves: Counter[tuple[str, int]] = Counter()
    spills, loops, products = [], [], 0
    for at, (low, high) in enumerate(struct.iter_unpack('<QQ', code)):
        operation = low & 0xFFF
        products += operation == PRODUCT
        if name := MOVES.get(operation):
            moves[name, WIDTHS[high >> 9 & 7]] += 1
            spills += [at] if name in ('LDL', 'STL') else []
        if operation == JUMP:
            distance = (high & (1 << 18) - 1) << 30 | low >> 34
            distance -= distance >> 47 << 48
            to = at + 1 + ((distance << 8) + (low >> 16 & 0xFF)) // 4
            loops += [range(to, at + 1)] if to < at else []
    innermost = [one for one in loops if not any(one != other and _holds(one, other) for other in loops)]
    return Kernel(registers, moves, products, sum(any(at in loop for loop in innermost) for at in spills))


def _holds(outer: range, inner: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop
