r"""LR images of a test set as they are, after JPEG compression and with noise, and an option file that tests on them.

    python scripts/benchmarks/degraded.py datasets/benchmark/Set14/HR -o degraded
    basicsr test -opt degraded/test.yml
    basicsr test -opt degraded/test.yml --force_yml path:pretrain_network_g=photo network_g:encoder:num_block=8 \
        network_g:residual_weight=0.75

The figures of README's table. JPEG: quality 40, chroma at half the resolution. Noise: Gaussian, 10 of 255 levels, from
a fixed seed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from clit_basicsr.base.files import replacing
from clit_basicsr.cli.option_file import read_option_file
from clit_basicsr.data.degradation import compress
from clit_basicsr.data.pairs import make_pair

SCALES = (2, 3, 4)
OPTIONS = Path(__file__).parents[2] / 'options' / 'test_clit_light.yml'


def noise(image: np.ndarray, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(0, 10, image.shape)
    return np.clip(np.round(image + drawn), 0, 255).astype(np.uint8)


KINDS = {'clean': lambda image, seed: image, 'jpeg40': lambda image, seed: compress(image, 40), 'noise10': noise}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('hr', type=Path, help='folder of HR images')
    parser.add_argument('-o', '--output', type=Path, default=Path('degraded'))
    args = parser.parse_args(arguments)
    paths = sorted(args.hr.glob('*.png'))
    if not paths:
        parser.error(f'{args.hr} holds no PNG files')
    options = read_option_file(str(OPTIONS))
    options['name'], options['datasets'] = 'degraded', {}
    for kind, degrade in KINDS.items():
        for scale in SCALES:
            folder = (args.output / kind / f'X{scale}').resolve()
            for path in paths:
                hr = np.array(Image.open(path, formats=('PNG',)).convert('RGB'))
                _, lr = make_pair(hr, (scale, scale), 'matlab')
                image = degrade(lr, sum(map(ord, path.stem)) + scale)
                with replacing(str(folder / f'{path.stem}x{scale}.png')) as unfinished:
                    Image.fromarray(image).save(unfinished, 'PNG')
            options['datasets'][f'test_{kind}_x{scale}'] = {
                'name': f'{kind}_x{scale}',
                'type': 'ScaledPairDataset',
                'dataroot_gt': str(args.hr.resolve()),
                'dataroot_lq': str(folder),
                'filename_tmpl': f'{{}}x{scale}',
                'io_backend': {'type': 'disk'},
                'scale': scale,
                'protocol': 'benchmark',
            }
    with replacing(str(args.output / 'test.yml')) as unfinished:
        Path(unfinished).write_text(yaml.safe_dump(options, sort_keys=False))


if __name__ == '__main__':
    main()
