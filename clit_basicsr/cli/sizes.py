"""Sizes and places in pictures, as written on a command line: x before y, width before height, as in image viewers.

In Python and in option files it is the other way round, (y, x) and (H, W), as arrays are indexed.
"""

import argparse
import math
from collections.abc import Callable

from clit_basicsr.base.errors import UserError

LONGEST_SIDE = 2**31 - 1  # pixels, of any format


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-s, --size, --width, --height: exactly one of them."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        '-s', '--scale', metavar='S', help='factor of at least 1: 3.7; or two, for width x height: 2x3.5'
    )
    group.add_argument('--size', metavar='WxH', help='width x height of the result in pixels: 1920x1080')
    group.add_argument('--width', metavar='N', help='width of the result in pixels; the height follows')
    group.add_argument('--height', metavar='N', help='height of the result in pixels; the width follows')


def parse(args: argparse.Namespace) -> Callable[[int, int], dict]:
    """What the arguments ask for: from (h, w) of a picture to ``{scale}`` or ``{size}`` of ``net.upscale``.

    Raises:
        UserError: a factor or a size that no picture could be given.
    """
    if args.scale is not None:
        scale = parse_scale(args.scale)
        return lambda h, w: {'scale': scale}
    if args.size is not None:
        numbers = args.size.lower().split('x')
        if len(numbers) != 2:
            raise UserError(f'--size: give width x height in pixels, as in 1920x1080; got {args.size!r}.')
        width, height = (_side('--size', number) for number in numbers)
        return lambda h, w: {'size': (height, width)}
    if args.width is not None:
        width = _side('--width', args.width)
        return lambda h, w: {'size': (max(1, round(h * width / w)), width)}
    height = _side('--height', args.height)
    return lambda h, w: {'size': (height, max(1, round(w * height / h)))}


def suffix(args: argparse.Namespace) -> str:
    """What the names of results end with where no other name is given: '_x3.7', '_1920x1080', '_w3840'."""
    if args.scale is not None:
        return f'_x{args.scale.lower()}'
    if args.size is not None:
        return f'_{args.size.lower()}'
    return f'_w{args.width}' if args.width is not None else f'_h{args.height}'


def result(h: int, w: int, target: dict) -> tuple[tuple[int, int], tuple[float, float]]:
    """Size (H, W) and factors (y, x) of what a picture of (h, w) becomes; ``target``: ``{scale}`` or ``{size}``.

    Raises:
        UserError: it would be smaller than the picture.
    """
    from clit_basicsr.archs.sizes import output_size

    size = target.get('size')
    if size and (size[0] < h or size[1] < w):
        raise UserError(
            f'it has {w}x{h} pixels, and {size[1]}x{size[0]} are asked for: a network only enlarges; -s 1 restores a '
            'picture at its own size.'
        )
    return output_size((h, w), size, target.get('scale'))


def point(text: str, h: int, w: int) -> tuple[float, float]:
    """A place ``x,y`` in a picture of (h, w) pixels: (y, x) in pixels from its upper left corner.

    Two numbers up to 1 of which one has a point are parts of width and height; others are pixels, whose centre is
    meant where they are whole.

    Raises:
        UserError: it is not a pair of numbers, or outside the picture.
    """
    try:
        x, y = (float(number) for number in text.split(','))
    except ValueError:
        raise UserError(f'--at: give x,y, as in 0.3,0.75 or 120,340; got {text!r}.') from None
    if '.' in text and max(y, x) <= 1:
        y, x = y * h, x * w
    else:
        y, x = (value + 0.5 if value.is_integer() else value for value in (y, x))
    if not (0 <= y <= h and 0 <= x <= w):
        raise UserError(f'--at: {text} is outside the picture, which has {w} columns and {h} rows.')
    return y, x


def parse_scale(text: str) -> float | tuple[float, float]:
    """A factor '3.7', or (y, x) from two, '2x3.5', for width x height.

    Raises:
        UserError: it is anything else, or below 1.
    """
    try:
        factors = [float(number) for number in text.lower().split('x')]
    except ValueError:
        factors = []
    if len(factors) not in (1, 2):
        raise UserError(f'-s: give a factor such as 3.7, or two (for width x height) such as 2x3.5; got {text!r}.')
    for factor in factors:
        if not math.isfinite(factor):
            raise UserError(f'-s: a factor must be a finite number; got {text}.')
        if factor < 1:
            raise UserError(f'-s: a factor must be at least 1, because networks only enlarge; got {text}.')
    return factors[0] if len(factors) == 1 else (factors[1], factors[0])


def _side(option: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise UserError(f'{option}: a side is a whole number of pixels; got {text!r}.') from None
    if number < 1:
        raise UserError(f'{option}: a side has at least 1 pixel; got {number}.')
    if number > LONGEST_SIDE:
        raise UserError(f'{option}: no picture is as large as that; got {text[:40]}.')
    return number
