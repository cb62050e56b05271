"""The header of a JPEG in a tenth of the time that Pillow takes, for data sets."""

FRAMES = (0xC0, 0xC1, 0xC2)  # start of frame: baseline, extended, progressive; the others are rare
ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a segment, and the end


def ordinary_size(content: bytes) -> tuple[int, int] | None:
    """(H, W) in pixels, before turning, of a JPEG of 8 bits that is grey or of three channels; None: any other file."""
    if content[:3] != b'\xff\xd8\xff':
        return None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], content[at + 2] << 8 | content[at + 3]
        if marker in FRAMES:
            height, width = (content[i] << 8 | content[i + 1] for i in (at + 5, at + 7))
            ordinary = content[at + 4] == 8 and content[at + 9] in (1, 3) and height and width
            return (height, width) if ordinary else None
        if marker in ALONE or length < 2:
            return None
        at += 2 + length
    return None
