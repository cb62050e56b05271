"""The photographs shipped with scikit-image as a training set and a held-out picture: ``datasets/quickstart/``."""

from pathlib import Path

import skimage
from PIL import Image

from clit_basicsr.base.files import replacing

TRAIN = ['astronaut.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'hubble_deep_field.jpg', 'ihc.png']
TRAIN += ['brick.png', 'camera.png', 'coins.png', 'grass.png', 'gravel.png']
HELD_OUT = 'chelsea.png'
FORMATS = ('PNG', 'JPEG')  # of those photographs


def main() -> None:
    source, target = Path(skimage.__file__).parent / 'data', Path('datasets/quickstart')
    for name in [*TRAIN, HELD_OUT]:
        with replacing(str(target / ('val' if name == HELD_OUT else 'train') / f'{Path(name).stem}.png')) as unfinished:
            Image.open(source / name, formats=FORMATS).convert('RGB').save(unfinished)
    print(f'{target}: {len(TRAIN)} photographs for training, {HELD_OUT} held out')


if __name__ == '__main__':
    main()
