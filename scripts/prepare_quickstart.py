"""Turns the photographs shipped with scikit-image into a training set and a held-out picture: ``datasets/quickstart/``.

The training photographs are cut into sub-images, as is usual for DIV2K: a crop then only decodes a small file.
"""

import math
from pathlib import Path

import skimage
from PIL import Image

from clit_basicsr.base.files import replacing

TRAIN = ['astronaut.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'hubble_deep_field.jpg', 'ihc.png']
TRAIN += ['brick.png', 'camera.png', 'coins.png', 'grass.png', 'gravel.png']
HELD_OUT = 'chelsea.png'
FORMATS = ('PNG', 'JPEG')  # of those photographs
SIDE = 256  # pixels; larger than any training crop, small enough to decode quickly


def save(image: Image.Image, target: Path) -> None:
    with replacing(str(target)) as unfinished:
        image.save(unfinished)


def sub_images(image: Image.Image) -> list[Image.Image]:
    """The fewest squares of ``SIDE`` pixels that cover the image; they overlap where necessary."""
    starts = []
    for length in (image.height, image.width):
        count = math.ceil(length / SIDE)
        starts.append([round(i * (length - SIDE) / max(count - 1, 1)) for i in range(count)])
    return [image.crop((x, y, x + SIDE, y + SIDE)) for y in starts[0] for x in starts[1]]


def main() -> None:
    source, target = Path(skimage.__file__).parent / 'data', Path('datasets/quickstart')
    count = 0
    for name in TRAIN:
        for i, part in enumerate(sub_images(Image.open(source / name, formats=FORMATS).convert('RGB')), 1):
            save(part, target / 'train' / f'{Path(name).stem}_s{i:03d}.png')
            count += 1
    save(Image.open(source / HELD_OUT, formats=FORMATS).convert('RGB'), target / 'val' / HELD_OUT)
    print(f'{target}: {count} sub-images of {len(TRAIN)} photographs for training, {HELD_OUT} held out')


if __name__ == '__main__':
    main()
