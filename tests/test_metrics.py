"""The papers' protocols: colours, borders, clamping."""

import math

import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_metric
from skimage import data
from skimage.metrics import structural_similarity

import clit_basicsr.metrics.psnr_ssim_float as metrics
from clit_basicsr.base.errors import UserError
from clit_basicsr.metrics import calculate_psnr_float, calculate_ssim_float


def photograph_pair():
    truth = torch.from_numpy(data.astronaut()[100:171, 200:263].copy()).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    return (truth + 0.05 * noise).clamp(0, 1), truth


@pytest.mark.parametrize(
    ('protocol', 'scale', 'border'),
    [
        ('div2k', 4, 10), ('benchmark', 4, 4), ('div2k', 2.5, 9), ('benchmark', 2.5, 3), ('benchmark', (2, 3.2), 4),
        ('benchmark', [3.0, 2.0], 3), ('div2k', (1.5, 1), 8), ('benchmark', 3 * 1.1, 4), ('benchmark', 0.1 * 3 * 10, 3),
    ],
)  # fmt: skip
def test_border_is_cut_exactly(protocol, scale, border):
    truth = torch.full((1, 3, 40, 31), 0.5)
    prediction = truth + 0.1
    prediction[..., border : 40 - border, border : 31 - border] = 0.51
    luma = 1 if protocol == 'div2k' else (65.738 + 129.057 + 25.064) / 256
    assert calculate_psnr_float(prediction, truth, protocol, scale) == pytest.approx(
        -20 * math.log10(0.01 * luma), abs=1e-4
    )
    inner = prediction.clone()
    inner[0, :, border, 15] = 0.9  # the outermost row that counts
    assert (
        calculate_psnr_float(inner, truth, protocol, scale)
        < calculate_psnr_float(prediction, truth, protocol, scale) - 1
    )


@pytest.mark.parametrize(('channel', 'weight'), [(0, 65.738), (1, 129.057), (2, 25.064)])
def test_luma_weights_are_of_red_green_blue(channel, weight):
    truth = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1)) * 0.5
    prediction = truth.clone()
    prediction[:, channel] += 0.1
    assert calculate_psnr_float(prediction, truth, 'benchmark', 2) == pytest.approx(
        -20 * math.log10(0.1 * weight / 256), abs=1e-4
    )
    assert calculate_psnr_float(prediction, truth, 'div2k', 2) == pytest.approx(-10 * math.log10(0.01 / 3), abs=1e-4)


def test_prediction_is_clamped_but_not_rounded():
    truth = torch.zeros(1, 3, 30, 30)
    truth[..., 15:] = 1
    beyond = truth * 1.4 - 0.2
    assert calculate_psnr_float(beyond, truth, 'div2k', 2) == math.inf
    assert calculate_ssim_float(beyond, truth) == pytest.approx(1, abs=1e-12)
    below_half_a_level = truth * 0.999
    assert calculate_psnr_float(below_half_a_level, truth, 'div2k', 2) == pytest.approx(63.0103, abs=1e-3)


def test_identical_images_have_infinite_psnr_and_ssim_one():
    _, truth = photograph_pair()
    assert calculate_psnr_float(truth, truth, 'benchmark', 3) == math.inf
    assert calculate_ssim_float(truth, truth, protocol='benchmark', scale=3) == pytest.approx(1, abs=1e-12)


def test_ssim_inside_equals_scikit_image():
    prediction, truth = photograph_pair()
    for channel in range(3):
        a, b = prediction[0, channel].double(), truth[0, channel].double()
        _, expected = structural_similarity(
            a.numpy(), b.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
        )
        inside = metrics._ssim_map(a[None], b[None])[0, 5:-5, 5:-5]
        np.testing.assert_allclose(inside, expected[5:-5, 5:-5], atol=1e-10)


def test_ssim_counts_the_zero_padded_rim():
    prediction, truth = photograph_pair()
    gauss = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = torch.outer(gauss, gauss) / gauss.sum() ** 2

    def blur(x):
        return torch.nn.functional.conv2d(x.transpose(0, 1), window[None, None], padding=5)

    a, b = prediction.double(), truth.double()
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    expected = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert calculate_ssim_float(prediction, truth, protocol='div2k', scale=4) == pytest.approx(
        expected.mean().item(), abs=1e-10
    )


def test_host_finds_the_metrics_and_their_mark():
    prediction, truth = photograph_pair()
    pair = {'img': prediction, 'img2': truth, 'protocol': 'benchmark', 'scale': (2.0, 2.0)}
    for function in (calculate_psnr_float, calculate_ssim_float):
        assert calculate_metric(pair, {'type': function.__name__}) == function(**pair)
    assert calculate_psnr_float.takes_float_tensors and calculate_ssim_float.takes_float_tensors


def test_wrong_input_is_named():
    x = torch.zeros(1, 3, 20, 30)
    with pytest.raises(UserError, match=r'20x30 pixels is too small for the border of 10 pixels .* div2k .* scale 4'):
        calculate_psnr_float(x, x, 'div2k', 4)
    for scale, text in (((4.0, 4.0), '4'), ((2.0, 3.5), '2x3.5')):
        with pytest.raises(UserError, match=f'cuts off at scale {text}; remove'):
            calculate_psnr_float(x, x, 'div2k', scale)
    assert calculate_psnr_float(x, x, 'div2k', 3) == math.inf  # 2 rows are left
    with pytest.raises(UserError, match="protocol: 'Set5' is not known; use div2k or benchmark"):
        calculate_psnr_float(x, x, 'Set5', 2)
    for function in (calculate_psnr_float, calculate_ssim_float):
        with pytest.raises(ValueError, match=r'img2\.shape=torch\.Size\(\[1, 3, 20, 31\]\)'):
            function(x, torch.zeros(1, 3, 20, 31), protocol='benchmark', scale=2)
        with pytest.raises(ValueError, match='shape'):
            function(x[0], x[0], protocol='benchmark', scale=2)
