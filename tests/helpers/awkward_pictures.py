"""Picture files as found in the wild: rare, odd and damaged ones, built byte by byte or with the common libraries."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def color(height=6, width=9, channels=3, dtype=np.uint8):
    """A smooth, asymmetric picture, so that a rotation, flip or swap of channels changes it."""
    y, x, c = np.mgrid[:height, :width, :channels]
    values = (0.15 + 0.6 * y / height + 0.2 * x / width) * (1 - 0.2 * c)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(height, width, depth, color_type, rows, *chunks):
    """A PNG from its parts; ``rows``: the bytes before compression, a filter byte before each row."""
    header = struct.pack('>IIBBBBB', width, height, depth, color_type, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def png_rows(pixels):
    big = pixels.astype(pixels.dtype.newbyteorder('>'))
    return b''.join(b'\0' + row.tobytes() for row in big)


def make(folder: Path) -> dict[str, tuple | str]:
    """Writes the files. Returns for each what it enlarges to at x1, (H, W, C, type), or a word of the error message."""
    image = Image.fromarray(color())
    grey16 = color(channels=1, dtype=np.uint16)[..., 0]
    rgb16, la16 = color(dtype=np.uint16), color(channels=2, dtype=np.uint16)
    expected: dict[str, tuple | str] = {}

    def add(name, result, content=None):
        expected[name] = result
        if content is not None:
            (folder / name).write_bytes(content)
        return folder / name

    # intact files
    Image.fromarray(color(1, 1)).save(add('one_pixel.png', (1, 1, 3, np.uint8)))
    image.convert('1').save(add('bits.png', (6, 9, 1, np.uint8)))
    image.convert('L').save(add('grey.jpg', (6, 9, 1, np.uint8)))
    image.convert('LA').save(add('grey_alpha.png', (6, 9, 2, np.uint8)))
    image.quantize(5).save(add('palette.png', (6, 9, 3, np.uint8)))
    image.quantize(5).save(add('palette_transparent.png', (6, 9, 4, np.uint8)), transparency=2)
    Image.fromarray(color(channels=4)).save(add('alpha.webp', (6, 9, 4, np.uint8)))
    image.convert('CMYK').save(add('cmyk.jpg', (6, 9, 3, np.uint8)))
    image.convert('CMYK').save(add('cmyk.tif', (6, 9, 3, np.uint8)))
    image.convert('YCbCr').save(add('ycbcr.tif', (6, 9, 3, np.uint8)))
    image.save(add('animated.gif', (6, 9, 3, np.uint8)), save_all=True, append_images=[image.rotate(180)], loop=0)
    image.save(add('pages.tif', (6, 9, 3, np.uint8)), save_all=True, append_images=[image.rotate(180)])
    exif = Image.Exif()
    exif[274] = 6
    image.save(add('turned.jpg', (9, 6, 3, np.uint8)), exif=exif)
    image.save(add('damaged_exif.jpg', (6, 9, 3, np.uint8)), exif=b'Exif\0\0MM\0*\xff\xff\xff\xff\0\0')
    image.save(add('damaged_profile.png', (6, 9, 3, np.uint8)), icc_profile=b'no profile')
    image.save(add('a_jpeg.png', (6, 9, 3, np.uint8)), format='JPEG')
    image.save(add('windows.bmp', (6, 9, 3, np.uint8)))
    Image.fromarray(grey16).save(add('grey16.png', (6, 9, 1, np.uint16)))
    key = (b'tRNS', struct.pack('>H', grey16[2, 3]))
    add('grey16_key.png', (6, 9, 2, np.uint16), png(6, 9, 16, 0, png_rows(grey16), key))
    add('grey16_alpha.png', (6, 9, 2, np.uint16), png(6, 9, 16, 4, png_rows(la16)))
    add('rgb16.png', (6, 9, 3, np.uint16), png(6, 9, 16, 2, png_rows(rgb16)))
    cv2.imwrite(str(add('rgb16_lzw.tif', (6, 9, 3, np.uint16))), rgb16[..., ::-1])
    tifffile.imwrite(
        add('grey16_alpha.tif', (6, 9, 2, np.uint16)), la16, photometric='minisblack', extrasamples=['unassalpha']
    )
    add('map16.ppm', (6, 9, 3, np.uint16), b'P6 9 6 65535\n' + rgb16.astype('>u2').tobytes())
    # damaged files
    add('empty.png', 'is empty', b'')
    add('text.png', 'not a picture', b'Dear picture, \nwhere are you?\n')
    whole = (folder / 'rgb16.png').read_bytes()
    add('truncated16.png', 'truncated', whole[: len(whole) // 2])
    whole = (folder / 'grey_alpha.png').read_bytes()
    add('truncated.png', 'truncated', whole[: len(whole) * 2 // 3])
    large = Image.effect_noise((64, 64), 50)
    large.save(folder / 'noise.jpg')
    add('truncated.jpg', 'truncated', (folder / 'noise.jpg').read_bytes()[:1500])
    large.save(folder / 'noise.webp')
    add('truncated.webp', 'truncated', (folder / 'noise.webp').read_bytes()[:700])
    cv2.imwrite(str(folder / 'noise.tif'), np.asarray(large).astype(np.uint16) * 257)
    add('truncated16.tif', 'truncated', (folder / 'noise.tif').read_bytes()[:3000])
    for name in ('noise.jpg', 'noise.webp', 'noise.tif'):
        (folder / name).unlink()
    add('huge.png', 'too large', png(100_000, 100_000, 8, 2, b'\0' * 100))
    whole = bytearray((folder / 'grey16_alpha.tif').read_bytes())
    for tag in (256, 257):  # width and height
        place = whole.find(struct.pack('<H', tag), 8)
        whole[place + 2 : place + 12] = struct.pack('<HII', 4, 1, 100_000)
    add('huge16.tif', 'too large', bytes(whole))
    add('no_pixels.png', 'not a picture', png(0, 9, 8, 2, b''))
    tifffile.imwrite(add('float.tif', '8 or 16 bits'), np.linspace(0, 1, 54, dtype=np.float32).reshape(6, 9))
    tifffile.imwrite(add('rgb_float.tif', '8 or 16 bits'), color().astype(np.float32), photometric='rgb')
    (folder / 'folder.png').mkdir()
    add('folder.png', 'is a folder')
    (folder / 'gone.png').symlink_to(folder / 'nowhere.png')
    add('gone.png', 'does not exist')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(add('pipe.png', 'is not a file'))
    return expected
