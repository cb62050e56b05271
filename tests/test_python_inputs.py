"""What Python callers may get wrong: one line that says what is given and what to give."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import clit_basicsr
from clit_basicsr import UserError
from clit_basicsr.archs import LIIF

IMAGE = np.zeros((6, 7, 3), np.uint8)
LQ = torch.zeros(1, 3, 6, 7)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return LIIF(encoder={'type': 'EDSR', 'num_feat': 4, 'num_block': 1}, hidden_dims=[4]).eval()


@pytest.mark.parametrize(
    ('lq', 'message'),
    [
        (np.zeros((1, 3, 6, 7), np.float32), r'lq must be a tensor \(B, 3, h, w\), got ndarray; clit_basicsr\.upscale'),
        (None, 'lq must be a tensor .* got NoneType'),
        (torch.zeros(3, 6, 7), r'lq must be \(B, 3, h, w\), got \(3, 6, 7\); lq\[None\] is a batch of one image'),
        (torch.zeros(1, 4, 6, 7), r'got \(1, 4, 6, 7\)\.$'),
        (torch.zeros(1, 3, 0, 7), r'got \(1, 3, 0, 7\)\.$'),
        (torch.zeros(0, 3, 6, 7), r'got \(0, 3, 6, 7\)\.$'),
        (torch.zeros(1, 3, 6, 7).to_sparse(), 'an ordinary dense tensor'),
        (torch.zeros(1, 3, 6, 7, dtype=torch.int64), r'uint8 or uint16; got torch\.int64'),
        (torch.zeros(1, 3, 6, 7, dtype=torch.float64), r'double precision, the network in torch\.float32; use lq\.f'),
        (torch.zeros(1, 3, 6, 7, device='meta'), r"lq is on meta, the network on cpu; use lq\.to\('cpu'\)"),
    ],
    ids=['array', 'None', 'no batch', 'RGBA', 'no rows', 'no images', 'sparse', 'int64', 'double', 'device'],
)
def test_wrong_tensors(net, lq, message):
    for call in (
        lambda: net.upscale(lq, scale=2),
        lambda: next(net.upscale_tiles(lq, scale=2)),
        lambda: net.encode(lq),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('tile', [8, [8, 4], 'whole', {'tile_size': 8, 'pad': 4}])
def test_a_tile_that_is_not_a_dict(net, tile):
    with pytest.raises(UserError, match='tile must be a dict with tile_size and tile_pad'):
        net.upscale(torch.zeros(1, 3, 6, 7), scale=2, tile=tile)


@pytest.mark.parametrize('tile_size', ['4', None, 4.7, float('nan'), [4], 0])
def test_a_tile_size_that_is_not_a_whole_number(net, tile_size):
    with pytest.raises(UserError, match='tile_size must be at least 1'):
        net.upscale(torch.zeros(1, 3, 6, 7), scale=2, tile={'tile_size': tile_size})


def test_half_precisions_are_not_mixed(net):
    half = copy.deepcopy(net).half()
    with pytest.raises(UserError, match=r'lq is in torch\.bfloat16, the network in torch\.float16; use lq\.float'):
        half.upscale(torch.zeros(1, 3, 6, 7, dtype=torch.bfloat16), scale=2)


@pytest.mark.parametrize('scale', [b'2', bytearray(b'2'), ('2', '3'), {2, 3}, {2: 3}, 1e300, (1e9, 1e9)])
def test_what_is_not_a_scale(net, scale):
    for call in (lambda: clit_basicsr.upscale(IMAGE, scale, model=net), lambda: net.upscale(LQ, scale=scale)):
        with pytest.raises(UserError, match='scale'):
            call()


def test_a_size_beyond_all_memory(net):
    with pytest.raises(UserError, match=r'size \(100000000, 100000000\) is too large'):
        clit_basicsr.upscale(IMAGE, size=(10**8, 10**8), model=net)


def test_coordinates_without_the_size_of_a_pixel(net):
    with pytest.raises(UserError, match='coord and cell come together'):
        net(LQ, torch.zeros(1, 5, 2))


@pytest.mark.parametrize('device', [3.5, ['cpu'], True, b'cpu', object()])
def test_what_is_not_a_device(net, device):
    for call in (
        lambda: clit_basicsr.upscale(IMAGE, 2, model=net, device=device),
        lambda: clit_basicsr.load(None, device),
    ):
        with pytest.raises(UserError, match='cannot be used here; choose cpu'):
            call()


@pytest.mark.parametrize('image', [[[1, 2], [3]], torch.zeros(4, 4, 3, device='meta'), torch.zeros(4, 4).to_sparse()])
def test_what_is_not_an_image(net, image):
    with pytest.raises(UserError, match='an image is a path, a Pillow image or an array; got'):
        clit_basicsr.upscale(image, 2, model=net)
    with pytest.raises(UserError, match='has no pixels'):
        clit_basicsr.upscale(Image.new('RGB', (0, 5)), 2, model=net)


def test_images_in_unusual_clothes(net):
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    expected = clit_basicsr.upscale(pixels, 2, model=net)
    assert np.array_equal(clit_basicsr.upscale(pixels.astype('>u2'), 2, model=net), expected)
    single = torch.from_numpy(pixels.astype(np.float32) / 65535)
    expected = clit_basicsr.upscale(single.numpy(), 2, model=net)
    for tensor in (single.clone().requires_grad_(), torch._neg_view(-single)):
        assert np.array_equal(clit_basicsr.upscale(tensor, 2, model=net), expected)
    rounded = single.bfloat16()
    expected = clit_basicsr.upscale(rounded.float().numpy(), 2, model=net)
    assert np.array_equal(clit_basicsr.upscale(rounded, 2, model=net), expected)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.uint16])
def test_integers_are_their_share_of_the_largest(net, dtype):
    largest = torch.iinfo(dtype).max
    values = torch.randint(0, largest + 1, (1, 3, 6, 7), generator=torch.Generator().manual_seed(1))
    expected = net.upscale(values.float() / largest, scale=(2, 1.5))
    assert torch.allclose(net.upscale(values.to(dtype), scale=(2, 1.5)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('model', [3, 2.5, ['clit-light'], b'clit-light', clit_basicsr])
def test_what_is_not_a_model(model):
    for call in (lambda: clit_basicsr.upscale(IMAGE, 2, model=model), lambda: clit_basicsr.load(model)):
        with pytest.raises(UserError, match=f'model: .* a name; got {type(model).__name__}'):
            call()


@pytest.mark.parametrize('tile', [0, -8, 1.5, '8', [8, 4]])
def test_what_is_not_the_side_of_a_tile(net, tile):
    with pytest.raises(UserError, match='tile: the side of a tile is a whole number'):
        clit_basicsr.upscale(IMAGE, 2, model=net, tile=tile)


def test_numbers_of_numpy_serve_as_well(net):
    found = clit_basicsr.upscale(IMAGE, np.float32(2), model=net, tile=np.int64(4))
    assert np.array_equal(found, clit_basicsr.upscale(IMAGE, 2, model=net, tile=4))
