"""Reports the quickstart's result: PSNR compared with bicubic, a comparison picture, and a one-line summary."""

import argparse
import csv
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clit_basicsr.base.files import replacing

TRAINED, BICUBIC = Path('experiments/quickstart_clit_edsr'), Path('results/quickstart_bicubic')
PICTURE = 'chelsea'
# The gain over bicubic that the trained network must reach, dB.
GOALS = {'x2': 0.5, 'x3': 0.3, 'x4': 0.3}
# The detail shown, (left, top, right, bottom) as fractions of the HR picture.
DETAIL = (0.30, 0.18, 0.62, 0.66)
PANEL = (288, 288)


def last_values(table: Path) -> dict[str, float]:
    """PSNR of each validation set at the last validation in the table."""
    with open(table, newline='') as file:
        return {row['dataset']: float(row['value']) for row in csv.DictReader(file) if row['metric'] == 'psnr'}


def newest(folder: Path) -> Path:
    return max(folder.glob(f'{PICTURE}_*.png'), key=lambda path: path.stat().st_mtime)


def detail(path: Path) -> Image.Image:
    image = Image.open(path, formats=('PNG',)).convert('RGB')
    box = [round(f * n) for f, n in zip(DETAIL, image.size * 2, strict=True)]
    return image.crop(tuple(box)).resize(PANEL, Image.Resampling.NEAREST)


def comparison(ours: dict[str, float], bicubic: dict[str, float], target: Path) -> None:
    """Saves a sheet with a row for each scale: bicubic, the trained network, the photograph itself."""
    scales, top, left = ['x2', 'x3.4', 'x8'], 30, 64
    width, height = PANEL
    sheet = Image.new('RGB', (left + 3 * width + 20, top + len(scales) * (height + 30)), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for column, title in enumerate(('bicubic', 'CLIT, quickstart', 'photograph')):
        draw.text((left + column * (width + 10), 4), title, 'black', font)
    for row, scale in enumerate(scales):
        y = top + row * (height + 30)
        draw.text((8, y + height // 2 - 10), scale, 'black', font)
        truth = Path('datasets/quickstart/val') / f'{PICTURE}.png'
        panels = (newest(BICUBIC / 'visualization' / scale), newest(TRAINED / 'visualization' / scale), truth)
        captions = (f'{bicubic[scale]:.2f} dB', f'{ours[scale]:.2f} dB', '')
        for column, (path, caption) in enumerate(zip(panels, captions, strict=True)):
            x = left + column * (width + 10)
            sheet.paste(detail(path), (x, y))
            draw.text((x, y + height + 3), caption, 'black', font)
    with replacing(str(target)) as unfinished:
        sheet.save(unfinished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=int, required=True, help='how long the quickstart took')
    seconds = parser.parse_args().seconds
    ours, bicubic = last_values(TRAINED / 'validation.csv'), last_values(BICUBIC / 'validation.csv')
    print(f'\n{"scale":>6} {"bicubic":>9} {"CLIT":>9} {"gain":>8}   PSNR (Y), dB, on a held-out picture')
    for name, value in bicubic.items():
        print(f'{name:>6} {value:9.2f} {ours[name]:9.2f} {ours[name] - value:+8.2f}')
    comparison(ours, bicubic, TRAINED / 'comparison.png')
    print(f'\nthe picture at every scale: {TRAINED}/visualization/; next to bicubic: {TRAINED}/comparison.png')
    gains = {name: ours[name] - bicubic[name] for name in GOALS}
    reached = all(gains[name] >= goal for name, goal in GOALS.items())
    summary = ', '.join(f'{gain:+.2f} dB at {name}' for name, gain in gains.items())
    verdict, took = 'done' if reached else 'BELOW ITS GOAL', f'{seconds // 60} min {seconds % 60} s'
    print(f'quickstart: {verdict}; {summary} over bicubic; {took}')
    raise SystemExit(not reached)


if __name__ == '__main__':
    main()
