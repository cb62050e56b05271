"""What Python callers may get wrong: one line that says what is given and what to give."""

import numpy as np
import pytest
import torch

import clit_basicsr
from clit_basicsr import UserError
from clit_basicsr.archs import LIIF

IMAGE = np.zeros((6, 7, 3), np.uint8)


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
        (torch.zeros(1, 3, 6, 7, dtype=torch.int64), r'uint8 or uint16; got torch\.int64'),
        (torch.zeros(1, 3, 6, 7, dtype=torch.float64), r'double precision, the network in torch\.float32; use lq\.f'),
        (torch.zeros(1, 3, 6, 7, device='meta'), r"lq is on meta, the network on cpu; use lq\.to\('cpu'\)"),
    ],
    ids=['array', 'None', 'no batch', 'RGBA', 'int64', 'double', 'device'],
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


@pytest.mark.parametrize('tile', [8, [8, 4], 'whole'])
def test_a_tile_that_is_not_a_dict(net, tile):
    with pytest.raises(UserError, match='tile must be a dict with tile_size and tile_pad'):
        net.upscale(torch.zeros(1, 3, 6, 7), scale=2, tile=tile)


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
