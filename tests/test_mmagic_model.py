"""ImplicitSR, data sets, metrics and averages in MMagic's registries, each against what it stands for in BasicSR."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.mmagic import needs_mmagic
from helpers.networks import SMALL_CLIT, SMALL_EDSR
from PIL import Image

from clit_basicsr.archs import build_network, save_checkpoint
from clit_basicsr.base.errors import UserError
from clit_basicsr.metrics import calculate_psnr_float, calculate_ssim_float

pytestmark = needs_mmagic
CLIT_NET = {**SMALL_CLIT, 'type': 'CLITNet'}


@pytest.fixture(scope='module')
def mmagic():
    from clit_basicsr.hosts.mmagic import plugin

    plugin.register_all()
    from mmengine.registry import init_default_scope

    init_default_scope('mmagic')
    from mmagic import registry

    return registry


@pytest.fixture
def model(mmagic):
    torch.manual_seed(2)
    return mmagic.MODELS.build({'type': 'ImplicitSR', 'generator': dict(CLIT_NET)}).eval()


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(3)
    for name, size in (('a.b c', (33, 26)), ('d', (24, 31))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f'{name}.png')
    return str(tmp_path)


def predict(model, lq, **metainfo):
    """The predicted samples for images (B, 3, h, w), RGB in 0 ... 255."""
    from mmagic.structures import DataSample

    about = {'img_channel_order': 'RGB', **metainfo}
    batch = {'inputs': list(lq), 'data_samples': [DataSample(metainfo=about) for _ in lq]}
    return model.val_step(batch)


def test_every_network_is_built_by_its_name(mmagic):
    for name in ('LIT', 'CLIT', 'LIIF', 'LTE', 'MetaSR', 'UltraSR', 'IPE'):
        options = {'encoder': SMALL_EDSR, **({'dim': 8, 'num_heads': 2} if name in ('LIT', 'CLIT') else {})}
        torch.manual_seed(0)
        ours = build_network({'type': name, **options}).state_dict()
        torch.manual_seed(0)
        built = mmagic.MODELS.build({'type': f'{name}Net', **options}).state_dict()
        assert ours.keys() == built.keys()
        assert all(torch.equal(ours[key], built[key]) for key in ours)
    lq = torch.rand(1, 3, 5, 6)
    bicubic = mmagic.MODELS.build({'type': 'BicubicNet'})
    assert bicubic.upscale(lq, scale=3).shape == (1, 3, 15, 18)
    assert mmagic.MODELS.get('LIIF').__module__.startswith('mmagic.')  # their own stays theirs


def test_a_host_imported_first_and_a_spawned_worker(images):
    program = f"""
import clit_basicsr
import mmagic.models
from mmagic.registry import DATASETS, MODELS
from torch.utils.data import DataLoader
assert MODELS.get('LITNet').__name__ == 'LIT' and MODELS.get('ImplicitSR')
dataset = DATASETS.build(dict(type='ScaledPairDataset', dataroot_gt={images!r}, scale=2))
loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context='spawn')
print([tuple(sample['inputs'].shape) for sample in loader])
"""
    script = f'{images}/script.py'
    with open(script, 'w') as file:
        file.write('if __name__ == "__main__":\n' + ''.join(f'    {line}\n' for line in program.splitlines()))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == '[(3, 16, 13), (3, 12, 15)]'


def test_the_preprocessor_gives_back_the_pixels_of_basicsr(model):
    from clit_basicsr.hosts.mmagic.datasets import to_255

    levels = torch.from_numpy(np.arange(256, dtype=np.uint8).astype(np.float32) / 255)
    image = levels.view(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(to_255(levels), torch.arange(256, dtype=torch.float32))
    done = model.data_preprocessor({'inputs': [to_255(image)]})
    assert torch.equal(done['inputs'][0], image)


@pytest.mark.parametrize('target', [{'scale': (2.5, 3.7)}, {'target_size': (31, 20)}, {'scale': 3}, {}])
def test_sizes_differ_along_the_axes(model, target):
    lq = torch.randint(0, 256, (2, 3, 9, 7)).float()
    samples = predict(model, lq, **target)
    size = {'size': target['target_size']} if 'target_size' in target else {'scale': target.get('scale', 4)}
    expected = model.generator.upscale(lq / 255, **size)
    for sample, image in zip(samples, expected, strict=True):
        assert torch.equal(sample.output.pred_float, image)
        assert sample.output.pred_img.shape == image.shape
        assert torch.equal(sample.output.pred_img, (image * 255).clamp(0, 255).flip(0))  # BGR


def test_a_scale_of_a_sample_is_not_replaced(model):
    with pytest.raises(UserError, match=r'of at least 1; got \(0, 0\)'):
        predict(model, torch.zeros(1, 3, 5, 6), scale=0)


def test_images_may_be_bgr_as_mmagic_reads_them(model):
    lq = torch.randint(0, 256, (1, 3, 6, 8)).float()
    rgb = predict(model, lq, scale=2)[0].output.pred_img
    bgr = predict(model, lq.flip(1), scale=2, img_channel_order='BGR')[0].output.pred_img
    assert torch.equal(rgb, bgr)


def test_options_of_tests(mmagic):
    torch.manual_seed(2)
    options = {'scale': [2, 3.5], 'tile': {'tile_size': 5, 'tile_pad': 6}}
    model = mmagic.MODELS.build({'type': 'ImplicitSR', 'generator': dict(CLIT_NET), 'test_cfg': options}).eval()
    lq = torch.randint(0, 256, (1, 3, 19, 7)).float()
    encoded = []
    model.generator.encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(arguments[0].shape[-2:]))
    samples = predict(model, lq)
    assert len(encoded) > 1 and all(rows < 19 for rows, _ in encoded)
    assert torch.equal(
        samples[0].output.pred_float, model.generator.upscale(lq / 255, scale=(2, 3.5), tile=options['tile'])[0]
    )
    from clit_basicsr.models.implicit_sr_model import self_ensemble

    for ensemble in (True, 'rotations'):
        model.test_options = {'self_ensemble': ensemble}
        expected = self_ensemble(model.generator, lq / 255, (2, 3.5), rotations=ensemble == 'rotations')
        assert torch.equal(predict(model, lq, scale=(2, 3.5))[0].output.pred_float, expected[0])


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'test_cfg': {'til': None}}, 'model:test_cfg:til is not an option; the nearest one is model:test_cfg:tile'),
        ({'train_cfg': {'variation_weigth': 1}}, 'the nearest one is model:train_cfg:variation_weight'),
        ({'train_cfg': {'variation_weight': -1}}, 'model:train_cfg:variation_weight must be at least 0'),
        ({'data_preprocessor': {'type': 'DataPreprocessor'}}, 'std [255, 255, 255]'),
        ({'generator': {'type': 'EDSRNet', 'in_channels': 3, 'out_channels': 3}}, 'EDSRNet cannot answer'),
        ({'test_cfg': {'precision': 'fp8'}}, 'fp8'),
        ({'pretrained_encoder': 'missing.pth'}, 'missing.pth'),
        ({'pretrained_encoder': 'a.pth', 'generator': {'type': 'BicubicNet'}}, 'the generator has no encoder'),
    ],
)
def test_mistakes_are_one_line(mmagic, options, said):
    with pytest.raises(UserError) as caught:
        mmagic.MODELS.build({'type': 'ImplicitSR', 'generator': dict(CLIT_NET), **options})
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_the_loss_with_variation(mmagic):
    """As the trainer of BasicSR has it; both hosts' gradients follow from it."""
    from mmagic.structures import DataSample

    encoder = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
    generator = {'type': 'TheraNet', 'encoder': encoder, 'num_components': 6, 'init': 'published'}
    config = {'type': 'ImplicitSR', 'generator': generator, 'train_cfg': {'variation_weight': 0.7}}
    model = mmagic.MODELS.build(config)
    lq, gt, coord, cell = torch.rand(2, 3, 6, 7), torch.rand(2, 9, 3), torch.rand(2, 9, 2), torch.full((2, 2), 0.1)
    plan = {'scales': [[[2.0, 2.0]]] * 2, 'drawn': [[2.0]] * 2, 'cell': cell.tolist()}
    found = model.forward_train(lq, DataSample(gt_img=gt, coord=coord, metainfo=plan))
    output, variation = model.generator(lq, coord, cell, variation=True)
    assert variation.mean() > 0.1
    torch.testing.assert_close(found['loss'], (output - gt).abs().mean() + 0.7 * variation.mean())
    assert found['variation'] == variation.mean() and not found['variation'].requires_grad


def test_a_batch_of_two_sizes_is_refused(model):
    with pytest.raises(UserError, match='several sizes; set batch_size to 1'):
        predict(model, [torch.zeros(3, 5, 6), torch.zeros(3, 6, 6)], scale=2)


def test_a_misspelt_option_of_a_data_set_is_refused(mmagic, images):
    with pytest.raises(UserError, match='downsamplng is not an option; the nearest one is dataset:downsampling'):
        mmagic.DATASETS.build({'type': 'ScaledPairDataset', 'dataroot_gt': images, 'scale': 2, 'downsamplng': 'pil'})


@pytest.mark.parametrize('protocol', ['div2k', 'benchmark'])
def test_figures_are_those_of_the_papers(mmagic, model, images, protocol):
    options = {'type': 'ScaledPairDataset', 'dataroot_gt': images, 'scale': [1.3, 2], 'protocol': protocol}
    samples = [mmagic.DATASETS.build(options)[index] for index in range(2)]
    assert [sample['data_samples'].vis_name for sample in samples] == ['a_b_c_x1_3x2', 'd_x1_3x2']
    metrics = [mmagic.METRICS.build({'type': name, 'prefix': 'set'}) for name in ('PSNRFloat', 'SSIMFloat')]
    expected = []
    for sample in samples:
        lq, gt = sample['inputs'] / 255, sample['data_samples'].gt_img / 255
        out = model.generator.upscale(lq[None], scale=(1.3, 2))
        pair = (out, gt[None])
        psnr = calculate_psnr_float(*pair, protocol=protocol, scale=(1.3, 2))
        expected.append((psnr, calculate_ssim_float(*pair)))
        batch = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        predicted = [one.to_dict() for one in model.val_step(batch)]
        for metric in metrics:
            metric.process(None, predicted)
    for metric, values in zip(metrics, zip(*expected, strict=True), strict=True):
        metric.size = 2
        assert metric.evaluate() == {f'set/{metric.metric}': sum(values) / 2}


def test_figures_of_mmagics_own_models(mmagic):
    """Whose pictures are in 0 ... 255 and BGR, and whose data sets name no scale."""
    generator = torch.Generator().manual_seed(0)
    gt, image = (torch.rand(3, 40, 60, generator=generator) for _ in range(2))
    sample = {'gt_img': 255 * gt.flip(0), 'input': torch.zeros(3, 20, 20), 'output': {'pred_img': 255 * image.flip(0)}}
    metric = mmagic.METRICS.build({'type': 'PSNRFloat', 'protocol': 'benchmark'})
    metric.process(None, [sample])
    expected = calculate_psnr_float(image[None], gt[None], protocol='benchmark', scale=(2, 3))
    assert metric.results == [{'PSNR': pytest.approx(expected, rel=1e-6)}]


def test_averages_are_those_of_basicsr(mmagic):
    net = torch.nn.Linear(3, 2)
    average = mmagic.MODELS.build({'type': 'BasicSREMA', 'decay': 0.9}, default_args={'model': net})
    expected = net.weight.detach().clone()
    for step in range(3):
        net.weight.data += step + 0.3
        average.update_parameters(net)
        expected = expected.mul(0.9).add(net.weight.data, alpha=0.1)
        assert torch.equal(average.module.weight, expected)
    assert average.steps == 3


def test_checkpoints_are_made_plain():
    from collections import OrderedDict, deque

    from clit_basicsr.base.option_types import plain
    from clit_basicsr.hosts.mmagic.checkpoints import _tensor_or_plain, of_mmagic

    weight = torch.ones(2)
    given = OrderedDict(a=np.float64(0.5), b=[np.int64(3), (weight, np.arange(2))], c=deque([1]), d=None, e=True)
    found = plain(given, _tensor_or_plain)
    assert found == {'a': 0.5, 'b': [3, [weight, [0, 1]]], 'c': 'deque([1])', 'd': None, 'e': True}
    assert type(found['a']) is float
    both = {'params': {'w': weight}, 'params_ema': {'module.w': 2 * weight}, 'network_g': {'type': 'LIT'}}
    assert of_mmagic(both)['state_dict'].keys() == {'generator.w'}
    assert torch.equal(of_mmagic(both)['state_dict']['generator.w'], 2 * weight)
    theirs = {'state_dict': {'generator.w': weight}, 'meta': {}}
    assert of_mmagic(theirs) is theirs


def test_inference_from_python(mmagic, model, tmp_path, images):
    """`init_model` and MMagic's own inferencer, with a checkpoint of BasicSR."""
    from mmagic.apis import init_model
    from mmagic.apis.inferencers.image_super_resolution_inferencer import ImageSuperResolutionInferencer
    from mmengine.config import Config

    file = str(tmp_path / 'net_g.pth')
    save_checkpoint(file, {'params': model.generator.state_dict(), 'network_g': SMALL_CLIT})
    load = {'type': 'LoadImageFromFile', 'key': 'img', 'color_type': 'color', 'channel_order': 'rgb'}
    config = {
        'model': {'type': 'ImplicitSR', 'generator': dict(CLIT_NET), 'test_cfg': {'scale': [2.5, 3]}},
        'test_pipeline': [{**load, 'imdecode_backend': 'cv2'}, {'type': 'PackInputs'}],
        'default_scope': 'mmagic',
    }
    loaded = init_model(Config(config), file, device='cpu')
    weights = loaded.generator.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.generator.state_dict().items())
    inferencer = ImageSuperResolutionInferencer(Config(config), file, device='cpu')
    picture = np.asarray(Image.open(f'{images}/d.png'))
    _, answer = inferencer(img=f'{images}/d.png')
    lq = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    expected = model.generator.upscale(lq, scale=(2.5, 3))[0].clamp(0, 1).flip(0).permute(1, 2, 0) * 255
    assert answer.shape == (60, 93, 3)  # BGR, for mmcv.imwrite
    assert np.abs(answer - expected.numpy()).max() < 0.51


def test_a_file_that_cannot_be_read_is_one_line(mmagic, tmp_path):
    from mmengine.runner.checkpoint import CheckpointLoader

    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 and no more')
    with pytest.raises(UserError, match=r'cut\.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'cut.pth'))
    with pytest.raises(UserError, match='last_checkpoint in the work_dir is empty'):
        CheckpointLoader.load_checkpoint('')


WRONG = {
    'foreign': (lambda own: {'state_dict': {'backbone.w': torch.ones(2)}}, 'no weights of a generator'),
    'bare': (lambda own: dict(own), 'no weights of a generator'),
    'partial': (lambda own: {'params': {key: own[key] for key in own if 'conv_in' not in key}}, '2 missing'),
    'narrow': (lambda own: {'params': {key: torch.ones(7) for key, value in own.items()}}, 'of another size'),
    'more': (lambda own: {'params': {**own, 'extra.weight': torch.ones(2)}}, '1 unknown (extra.weight)'),
    'nan': (lambda own: {'params': {key: value * float('nan') for key, value in own.items()}}, 'not finite'),
    'state': (lambda own: {'iter': 3, 'epoch': 0, 'optimizers': [], 'schedulers': []}, 'it is a training state'),
    'list': (lambda own: list(own), 'it holds a list'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_a_checkpoint_that_does_not_fit_is_refused(mmagic, model, tmp_path, kind):
    """mmengine itself would answer with random weights."""
    from mmengine.runner import load_checkpoint

    content, said = WRONG[kind]
    torch.save(content(model.generator.state_dict()), tmp_path / 'wrong.pth')
    with pytest.raises(UserError) as caught:
        load_checkpoint(model, str(tmp_path / 'wrong.pth'))
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_checkpoint_with_fewer_branches_is_accepted(mmagic, model, tmp_path):
    """As in BasicSR: of a network of the stage before."""
    from mmengine.runner import load_checkpoint

    small = build_network({**SMALL_CLIT, 'num_branches': 1})
    torch.save({'params': small.state_dict()}, tmp_path / 'small.pth')
    load_checkpoint(model, str(tmp_path / 'small.pth'))
    own = model.generator.state_dict()
    assert all(torch.equal(own[key], value) for key, value in small.state_dict().items())
    assert len(own) > len(small.state_dict())
