"""MATLAB's bicubic resizing: kernel, borders, order of the passes, rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.pairs import downsample
from clit_basicsr.ops.geometry.resize import imresize, resize_axis

# (3, 7, 8), red, green, blue
PHOTOGRAPH = [
    [
        [148, 138, 135, 143, 127, 82, 98, 42],
        [151, 139, 139, 146, 127, 48, 26, 54],
        [141, 138, 141, 146, 120, 32, 2, 31],
        [134, 129, 133, 140, 98, 20, 5, 8],
        [140, 129, 131, 117, 46, 5, 7, 8],
        [139, 130, 123, 101, 47, 6, 8, 17],
        [139, 130, 115, 99, 61, 7, 7, 14],
    ],
    [
        [121, 114, 110, 119, 108, 73, 105, 36],
        [123, 115, 117, 128, 113, 43, 33, 42],
        [114, 115, 120, 129, 108, 27, 3, 27],
        [111, 109, 115, 124, 86, 17, 6, 9],
        [117, 109, 113, 108, 44, 6, 8, 8],
        [114, 109, 105, 93, 47, 7, 8, 16],
        [116, 111, 100, 90, 60, 9, 8, 14],
    ],
    [
        [66, 57, 57, 83, 81, 66, 127, 41],
        [65, 60, 70, 100, 98, 45, 47, 45],
        [58, 61, 76, 100, 100, 28, 0, 28],
        [57, 57, 74, 98, 77, 16, 4, 7],
        [60, 57, 70, 71, 25, 4, 6, 7],
        [58, 54, 53, 46, 25, 4, 6, 13],
        [58, 55, 48, 42, 34, 5, 6, 12],
    ],
]  # fmt: skip


def keys_cubic(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def exact_weights(in_size: int, out_size: int, scale: Fraction) -> list[dict[int, Fraction]]:
    """MATLAB's ``contributions``, exact and 1-based as in its source: input pixel -> weight, for every output pixel."""
    shrink = min(scale, Fraction(1))
    rows = []
    for x in range(1, out_size + 1):
        u = x / scale + (1 - 1 / scale) / 2
        left = math.floor(u - 2 / shrink)
        row: dict[int, Fraction] = {}
        mirrored = [*range(1, in_size + 1), *range(in_size, 0, -1)]
        for index in range(left, left + math.ceil(4 / shrink) + 2):
            pixel = mirrored[(index - 1) % len(mirrored)] - 1
            row[pixel] = row.get(pixel, Fraction(0)) + shrink * keys_cubic(shrink * (u - index))
        total = sum(row.values())
        rows.append({pixel: weight / total for pixel, weight in row.items() if weight})
    return rows


def weight_matrix(in_size: int, out_size: int, scale: Fraction) -> np.ndarray:
    matrix = np.zeros((out_size, in_size))
    for i, row in enumerate(exact_weights(in_size, out_size, scale)):
        for pixel, weight in row.items():
            matrix[i, pixel] = float(weight)
    return matrix


def exact_uint8(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """MATLAB's imresize of a uint8 plane in exact arithmetic: vertically first, rounded and clipped in between."""
    for out_size in size:
        rows = exact_weights(plane.shape[0], out_size, Fraction(out_size, plane.shape[0]))
        out = np.zeros((out_size, plane.shape[1]), np.uint8)
        for i, row in enumerate(rows):
            for j in range(plane.shape[1]):
                value = sum(weight * int(plane[pixel, j]) for pixel, weight in row.items())
                half_away_from_zero = math.floor(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)
                out[i, j] = min(max(half_away_from_zero, 0), 255)
        plane = out.T  # after both passes the plane is back in its original orientation
    return plane


def test_halving_an_impulse_shows_the_kernel():
    x = torch.zeros(1, 1, 1, 16)
    x[..., 8] = 256
    # Output j sits between pixels 2j and 2j + 1; the kernel, twice as wide, is 111, 29, -9, -3 over 256 on either side.
    np.testing.assert_allclose(resize_axis(x, -1, 8)[0, 0, 0], [0, 0, -3, 29, 111, -9, 0, 0])


@pytest.mark.parametrize(
    ('in_size', 'out_size'),
    [
        (13, 13),
        (13, 26),
        (13, 33),
        (13, 44),
        (7, 100),
        (12, 6),
        (12, 4),
        (13, 5),
        (100, 7),
        (60, 2),
        (1, 5),
        (5, 1),
        (2, 3),
    ],
)
def test_weights_equal_exact_arithmetic(in_size, out_size):
    x = torch.eye(in_size, dtype=torch.float64)
    expected = weight_matrix(in_size, out_size, Fraction(out_size, in_size))
    np.testing.assert_allclose(resize_axis(x, 0, out_size).numpy(), expected, atol=1e-13)


def test_axes_are_resized_by_their_own_factor_in_a_batch():
    x = torch.rand(2, 3, 11, 17, generator=torch.Generator().manual_seed(0))
    down_up = weight_matrix(11, 5, Fraction(5, 11)), weight_matrix(17, 40, Fraction(40, 17))
    expected = np.einsum('ah,bchw,dw->bcad', down_up[0], x.double().numpy(), down_up[1])
    out = imresize(x, (5, 40))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(imresize(x.double(), (5, 40)), expected, atol=1e-14)


def test_scale_may_differ_from_the_ratio_of_sizes():
    x = torch.rand(1, 1, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows, columns = weight_matrix(10, 25, Fraction(12, 5)), weight_matrix(10, 4, Fraction(3, 8))
    out = imresize(x, (25, 4), scale=(2.4, 0.375))
    np.testing.assert_allclose(out[0, 0], rows @ x[0, 0].numpy() @ columns.T, atol=1e-13)
    assert (out - imresize(x, (25, 4))).abs().max() > 1e-2


def test_same_size_and_constant_images_stay():
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(imresize(x, (9, 8)), x)
    for size in ((3, 20), (31, 5), (9, 9)):
        constant = imresize(torch.full((1, 3, 9, 8), 0.3, dtype=torch.float64), size)
        assert constant.shape == (1, 3, *size)
        assert (constant - 0.3).abs().max() < 1e-15


def test_result_is_neither_clipped_nor_rounded():
    step = torch.zeros(1, 1, 4, 8)
    step[..., 4:] = 1
    out = imresize(step, (8, 16))
    assert out.max() > 1.01 and out.min() < -0.01


def test_refuses_integers_and_empty_axes():
    with pytest.raises(TypeError, match=r'floating-point.*uint8'):
        imresize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2))
    with pytest.raises(ValueError, match='4 pixels to 0'):
        imresize(torch.zeros(1, 3, 4, 4), (0, 2))


@pytest.mark.parametrize('size', [(12, 10), (6, 5), (3, 10), (24, 5)])
def test_matlab_uint8_is_exact_with_ties(size):
    # Factors 1/2, 1/4 and 1/8 have dyadic weights: every value is exact in floating point, and ties are frequent.
    img = np.random.default_rng(3).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    img[:8, :8] = [0, 255, 0]  # strong edges, at which the passes clip
    img[:8:2, 4:12] = [255, 0, 255]
    expected = np.stack([exact_uint8(img[..., c], size) for c in range(3)], -1)
    assert np.array_equal(downsample(img, size, 'matlab'), expected)


def test_matlab_rounds_halves_away_from_zero():
    # 111 * 128 / 256 = 55.5 -> 56 and 29 * 128 / 256 = 14.5 -> 15; half to even would give 56 and 14.
    row = np.zeros(16, np.uint8)
    row[8] = 128
    img = np.repeat(np.tile(row, (2, 1))[..., None], 3, axis=2)
    assert downsample(img, (2, 8), 'matlab')[0, :, 0].tolist() == [0, 0, 0, 15, 56, 0, 0, 0]


def test_matlab_result_of_a_photograph():
    # The routine that computed these numbers reproduces the published x2, x3, x4 LR images of Set5 and Set14 exactly.
    img = data.chelsea()[100:121, 150:174]
    expected = np.array(PHOTOGRAPH, np.uint8).transpose(1, 2, 0)
    assert np.array_equal(downsample(img, (7, 8), 'matlab'), expected)


def test_matlab_on_non_integer_factors_equals_exact_arithmetic():
    img = np.random.default_rng(4).integers(0, 256, (31, 23, 3), dtype=np.uint8)
    out = downsample(img, (12, 9), 'matlab')
    expected = np.stack([exact_uint8(img[..., c], (12, 9)) for c in range(3)], -1)
    assert np.array_equal(out, expected)


def test_pil_is_pillows_own_on_a_view_with_negative_strides():
    img = data.astronaut()[:90, :120][:, ::-1].transpose(1, 0, 2)
    expected = Image.fromarray(np.ascontiguousarray(img)).resize((25, 40), Image.Resampling.BICUBIC)
    out = downsample(img, (40, 25), 'pil')
    assert out.dtype == np.uint8 and np.array_equal(out, np.asarray(expected))
    matlab = downsample(img, (40, 25), 'matlab')
    assert matlab.shape == out.shape and not np.array_equal(matlab, out)
    assert np.abs(matlab.astype(int) - out).mean() < 1.5


def test_unknown_kind():
    with pytest.raises(UserError, match=r"downsampling: 'bicubic' is not known; use one of pil, matlab\."):
        downsample(np.zeros((4, 4, 3), np.uint8), (2, 2), 'bicubic')
