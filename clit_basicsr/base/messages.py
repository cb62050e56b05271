"""Words that messages share."""


def scale_text(scale: tuple[float, float]) -> str:
    """'2', '3.4', or '2x3.5' (y, x)."""
    return f'{scale[0]:g}' if scale[0] == scale[1] else f'{scale[0]:g}x{scale[1]:g}'
