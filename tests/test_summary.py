"""What `basicsr test` says at its end: figures against ones computed directly, beside the right row of the paper."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clit_basicsr import cli
from clit_basicsr.archs import build_network
from clit_basicsr.cli.option_file import read_option_file
from clit_basicsr.hosts.basicsr import plugin
from clit_basicsr.metrics import calculate_psnr_float
from clit_basicsr.models.measurement import measure
from clit_basicsr.report import missing_sets, paper_tables, summary
from clit_basicsr.report.curves import draw_psnr_over_scale
from clit_basicsr.report.paper_row import paper_row
from clit_basicsr.report.paper_tables import paper_psnr, paper_set, why_not_comparable
from clit_basicsr.report.summary import Row, Summary
from clit_basicsr.report.test_run import Measurement, row_of

OPTIONS = Path(__file__).parent.parent / 'options'
EDSR = {'type': 'EDSR', 'num_feat': 64, 'num_block': 16, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
RDN = {'type': 'RDN', 'num_feat': 64, 'num_block': 16, 'num_layer': 8, 'num_grow_ch': 64}
SWINIR = {'type': 'SwinIR', 'embed_dim': 180, 'depths': [6] * 6, 'num_heads': [6] * 6, 'window_size': 8}
SWINIR |= {'mlp_ratio': 2, 'conv_before_upsample': True, 'padding': 'published', 'img_size': 48}


@pytest.fixture(scope='module', autouse=True)
def registered():
    plugin.register()


def test_the_tables_are_read_whole():
    lines = Path(paper_tables.__file__).with_name('tables.csv').read_text().splitlines()[1:]
    psnr = [line for line in lines if line.endswith((',RGB', ',Y'))]
    assert sum(map(len, paper_psnr().values())) == len(psnr) == len(lines) - 7  # seven rows of hours
    assert '1,DIV2K validation,EDSR-baseline-CLIT,30,20.54,RGB' in lines
    assert paper_psnr()['EDSR-baseline-CLIT']['DIV2K validation', 30] == 20.54
    assert '5,DIV2K validation,"EDSR-baseline-LIT Training with r ~ U(1, 4)",2,34.79,RGB' in lines
    assert paper_psnr()['EDSR-baseline-LIT Training with r ~ U(1, 4)']['DIV2K validation', 2] == 34.79
    channels = {(line.split(',')[1], line.rsplit(',', 1)[1]) for line in psnr}
    assert channels == {(name, 'RGB' if one.protocol == 'div2k' else 'Y') for name, one in paper_tables.SETS.items()}


@pytest.mark.parametrize(
    ('network_g', 'row'),
    [
        ({'type': 'CLIT', 'encoder': EDSR}, 'EDSR-baseline-CLIT'),
        ({'type': 'CLIT', 'encoder': RDN, 'num_branches': 3, 'hidden_dims': [256] * 4}, 'RDN-CLIT'),
        ({'type': 'CLIT', 'encoder': SWINIR, 'position_encoding': 'published'}, 'SwinIR-CLIT'),
        ({'type': 'MetaSR', 'encoder': SWINIR}, 'SwinIR-Meta-SR'),
        ({'type': 'LIT', 'encoder': EDSR}, 'EDSR-baseline-LIT'),
        ({'type': 'LIT', 'encoder': EDSR, 'cell': False}, 'EDSR-baseline-LIT (-c)'),
        ({'type': 'LIT', 'encoder': EDSR, 'grid_size': 25}, 'EDSR-baseline-LIT grid 25'),
        ({'type': 'SRNO', 'encoder': RDN, 'num_heads': 16}, 'RDN-SRNO'),
        ({'type': 'Thera', 'encoder': EDSR, 'variant': 'plus'}, 'EDSR-baseline-Thera Plus'),
        ({'type': 'Bicubic'}, 'Bicubic'),
    ],
)
def test_the_row_of_a_network(network_g, row):
    assert paper_row(network_g) == (row, '')


@pytest.mark.parametrize(
    ('network_g', 'reason'),
    [
        ({'type': 'CLIT', 'encoder': {**EDSR, 'num_block': 4}}, 'EDSR-baseline has num_block: 16, not 4'),
        ({'type': 'CLIT', 'encoder': {**EDSR, 'res_scale': 0.1}}, 'res_scale: 1, not 0.1'),
        ({'type': 'CLIT', 'encoder': {'type': 'SwinIR', 'padding': 'window'}}, 'embed_dim: 180, not 96'),
        ({'type': 'CLIT', 'encoder': {**RDN, 'num_block': 20}}, 'RDN has num_block: 16, not 20'),
        ({'type': 'CLIT', 'encoder': {'type': 'RCAN'}}, 'no encoder RCAN'),
        ({'type': 'CLIT', 'encoder': EDSR, 'dim': 64}, 'no CLIT with dim: 64'),
        ({'type': 'CLIT', 'encoder': EDSR, 'cell': False}, 'no CLIT with cell: False'),
        ({'type': 'LIT', 'encoder': EDSR, 'grid_size': 11}, 'no LIT with grid_size: 11'),
        ({'type': 'LIT', 'encoder': EDSR, 'grid_size': 3, 'cell': False}, 'grid_size: 3, cell: False'),
        ({'type': 'LIT', 'encoder': EDSR, 'hidden_dims': [64, 64]}, 'no LIT with hidden_dims'),
        ({'type': 'LIT', 'encoder': RDN}, 'no RDN-LIT'),
        ({'type': 'EDSR', 'num_block': 16}, 'EDSR is not a system'),
    ],
)
def test_no_row_is_guessed(network_g, reason):
    row, why = paper_row(network_g)
    assert (row, reason in why) == ('', True), why


# All but that of the package's own network, which is not in the paper.
PAPER_FILES = sorted(file for file in OPTIONS.glob('test_*.yml') if file.stem != 'test_clit_light')


@pytest.mark.parametrize('file', PAPER_FILES, ids=lambda file: file.stem)
def test_the_rows_of_the_option_files_have_figures_for_their_sets(file):
    opt = read_option_file(str(file))
    row, _ = paper_row(opt['network_g'])
    figures = set(paper_psnr()[row])
    sets = {(paper_set(one['name'].split('_')[0]), one['scale']): one for one in opt['datasets'].values()}
    assert figures <= set(sets)
    for (name, scale), block in sets.items():
        lr = 'given' if block['dataroot_lq'] else block.get('downsampling', 'pil')
        images = paper_tables.SETS[name].images
        assert why_not_comparable(name, (scale, scale), images, block['protocol'], lr) == ''


def test_what_is_not_comparable_is_reported():
    assert why_not_comparable('Set5', (2, 2), 5, 'benchmark', 'matlab') == ''
    assert why_not_comparable('Set5', (2, 2), 4, 'benchmark', 'given') == '4 images, where Set5 has 5'
    assert 'by benchmark' in why_not_comparable('Set5', (2, 2), 5, 'div2k', 'given')
    assert 'LR images pil' in why_not_comparable('Set5', (4, 4), 5, 'benchmark', 'pil')
    assert 'LR images pil' in why_not_comparable('Set5', (8, 8), 5, 'benchmark', 'pil', 'RDN-Thera Pro')
    assert why_not_comparable('Set5', (8, 8), 5, 'benchmark', 'matlab', 'RDN-Thera Pro') == ''
    assert 'LR images given' in why_not_comparable('Set5', (8, 8), 5, 'benchmark', 'given')
    assert 'both axes' in why_not_comparable('Set5', (2, 3), 5, 'benchmark', 'given')
    assert [paper_set(name) for name in ('set_14', 'DIV2K', 'DIV2K_valid_HR', 'BSD100', 'Set6')] == [
        'Set14', 'DIV2K validation', 'DIV2K validation', 'B100', None,
    ]  # fmt: skip


class HostSet:
    """A data set of the host: what it knows is in its options."""

    def __init__(self, **options):
        self.opt = {'name': 'Set5_x4', 'scale': 4, 'dataroot_gt': 'GT', 'dataroot_lq': 'LR', **options}

    def __len__(self):
        return 5


@pytest.mark.parametrize('protocol', [None, 'div2k', 'benchmark'])
def test_a_set_of_the_host_is_recorded_by_the_protocol_it_is_measured_by(protocol):
    dataset = HostSet() if protocol is None else HostSet(protocol=protocol)
    output, gt = torch.rand(2, 1, 3, 40, 50, generator=torch.Generator().manual_seed(0)).unbind()
    values = measure({'psnr': {'type': 'calculate_psnr_float'}}, dataset, output, gt, 'a.png').values
    row = row_of(Measurement(dataset, values), 'psnr', 'RDN-CLIT')
    assert row.protocol == (protocol or 'div2k')
    assert values['psnr'] == calculate_psnr_float(output, gt, row.protocol, 4)
    if protocol == 'benchmark':
        assert (row.paper, row.note) == (paper_psnr()['RDN-CLIT']['Set5', 4], '')
    else:
        assert row.note == 'protocol div2k, where the paper measures Set5 by benchmark'
    assert row_of(Measurement(dataset, {'host_psnr': 30.0}), '', '').protocol == ''


TEST = """
name: figures
model_type: ImplicitSRModel
num_gpu: 0
paper_row: RDN-CLIT
datasets:
  test_10: &set
    {name: Set5_x3, type: ScaledPairDataset, dataroot_gt: GT, scale: 3, downsampling: matlab, protocol: benchmark}
  test_2: {<<: *set, name: Set5_x6, scale: 6, downsampling: pil}
  test_3: {<<: *set, name: odd_x2.5, scale: [2.5, 2]}
  test_4: {<<: *set, name: Set14_x3}
  test_5: {<<: *set, name: B100_x2, dataroot_gt: no/B100}
  test_6: {<<: *set, name: B100_x3, dataroot_gt: no/B100}
  test_7: {<<: *set, name: Urban100_x2, dataroot_lq: no/LR}
network_g: {type: Bicubic}
path: {pretrain_network_g: ~}
val:
  metrics:
    host_psnr: {type: calculate_psnr, crop_border: 2}
    psnr: {type: calculate_psnr_float}
    ssim: {type: calculate_ssim_float}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory with an option file and five photograph-like images of odd sizes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    (tmp_path / 'GT').mkdir()
    for i in range(5):
        noise = Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8))
        noise.resize((61 + i, 53 + 2 * i), Image.Resampling.BICUBIC).save(tmp_path / 'GT' / f'{i}.png')
    (tmp_path / 'test.yml').write_text(TEST)
    return tmp_path


def direct_psnr(hr: np.ndarray, scale: int) -> float:
    """The benchmark protocol in plain numpy; the LR image by Pillow."""
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    hr = hr[: height * scale, : width * scale]
    lr = np.asarray(Image.fromarray(hr).resize((width, height), Image.Resampling.BICUBIC))
    lq = torch.from_numpy(lr.astype(np.float32) / 255).permute(2, 0, 1)[None]
    out = build_network({'type': 'Bicubic'}).upscale(lq, scale=scale)[0].permute(1, 2, 0).numpy().clip(0, 1)
    luma = (out.astype(np.float64) - hr / 255) @ np.array([65.738, 129.057, 25.064]) / 256
    return -10 * math.log10(np.mean(luma[scale:-scale, scale:-scale] ** 2))


def test_a_run_leaves_its_table(folder):
    def run(*forced):
        command = [sys.executable, '-m', 'clit_basicsr', 'test', '-opt', 'test.yml', '--force_yml', 'manual_seed=0']
        return subprocess.run([*command, *forced], capture_output=True, text=True, timeout=300, check=False)

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    skipped = [line for line in done.stderr.splitlines() if line.startswith('basicsr: skipped ')]
    assert [re.search('skipped (.*): folder (.*) does', line).groups() for line in skipped] == [
        ('B100_x2, B100_x3', 'no/B100'),
        ('Urban100_x2', 'no/LR'),
    ]
    results = folder / 'results/figures'
    content = json.loads((results / 'summary.json').read_text())
    rows = {row['name']: row for row in content['rows']}
    assert list(rows) == ['Set5_x3', 'Set5_x6', 'odd_x2.5', 'Set14_x3']  # as in the file, not in the host's order
    hr = [np.asarray(Image.open(file)) for file in sorted((folder / 'GT').iterdir())]
    six = rows['Set5_x6']
    assert six['values']['psnr'] == pytest.approx(np.mean([direct_psnr(one, 6) for one in hr]), abs=1e-4)
    assert six['paper'] == paper_psnr()['RDN-CLIT']['Set5', 6]
    assert six['difference'] == pytest.approx(six['values']['psnr'] - six['paper'], abs=1e-9)
    assert rows['odd_x2.5']['scale'] == [2.5, 2]
    assert rows['odd_x2.5']['paper'] is None and rows['odd_x2.5']['note'] == ''
    assert rows['Set14_x3']['paper'] is None and rows['Set14_x3']['note'] == '5 images, where Set14 has 14'
    assert list(six['values']) == ['host_psnr', 'psnr', 'ssim']
    with open(results / 'summary.csv', newline='') as file:
        lines = {line['name']: line for line in csv.DictReader(file)}
    assert float(lines['Set5_x6']['psnr']) == six['values']['psnr']
    assert lines['odd_x2.5']['scale'] == '2.5x2' and lines['odd_x2.5']['paper_psnr'] == ''
    shown = f'{six["values"]["psnr"]:.3f} | {six["paper"]:.2f} | {six["difference"]:+.2f} | '
    assert f'| Set5 | x6 | 5 | pil | {shown}' in (results / 'summary.md').read_text()
    table = done.stdout[done.stdout.index("figures, compared with the paper's row RDN-CLIT") :]
    assert re.search(rf'Set5 +x6 +5 +pil +{six["values"]["psnr"]:.3f} +29.39 ', table)
    assert table.count('skipped') + table.count('Skipped') == 2
    assert table in next(results.glob('*.log')).read_text()
    with Image.open(results / 'psnr_over_scale.png') as picture:
        assert picture.size == (960, 600)

    again = run('datasets:test_10:dataroot_gt=gone', 'datasets:test_3:dataroot_gt=gone')
    assert again.returncode == 0, again.stderr[-3000:]
    content = json.loads((results / 'summary.json').read_text())
    assert [row['name'] for row in content['rows']] == ['Set5_x6', 'Set14_x3']
    assert len((results / 'validation.csv').read_text().splitlines()) == 1 + 6  # two sets, three metrics


def refused(capsys, *forced):
    before = sorted(Path().rglob('*'))
    assert cli.main(['test', '-opt', 'test.yml', '--force_yml', *forced]) == 1
    assert sorted(Path().rglob('*')) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('basicsr: error: ')
    return error


def test_no_set_at_all_is_an_error(folder, capsys):
    forced = [f'datasets:test_{i}:dataroot_gt=no/{i}' for i in (10, 2, 3, 4)]
    assert 'none of the test sets exists: missing no/10, no/2, no/3, no/4 and 2 more' in refused(capsys, *forced)


def test_a_file_in_a_set_s_place_is_called_one(folder):
    missing = missing_sets.leave_out_missing_sets(
        {'datasets': {'test': {'name': 'a', 'dataroot_gt': 'test.yml'}, 'b': {}}}
    )
    (line,) = missing_sets.describe(missing)
    assert line.startswith('skipped a: test.yml is a file, not a folder; put')


def test_images_that_do_not_pair_are_an_error_still(folder, capsys):
    assert "GT: no LR image '0x3'" in refused(
        capsys, 'datasets:test_10:dataroot_lq=GT', "datasets:test_10:filename_tmpl='{}x3'"
    )


def test_a_row_that_the_tables_do_not_have(folder, capsys):
    assert "the paper's tables have no 'RDN-CLTI'; the nearest is 'RDN-CLIT'" in refused(capsys, 'paper_row=RDN-CLTI')


def test_figures_that_are_missing_or_not_finite():
    rows = [
        Row('a_x2', 'a', (2, 2), 'pil', 'div2k', 1, {'psnr': math.inf, 'ssim': 1.0}),
        Row('a_x3', 'a', (3, 3), 'pil', 'div2k', 1, {'psnr': 20.0, 'ssim': 0.5}, 21.25),
    ]
    found = Summary('run', 'RDN-CLIT', ['A remark.'], 'psnr', rows)
    lines = json.loads(summary.as_json(found), parse_constant=lambda name: pytest.fail(name))['rows']
    assert [line['values']['psnr'] for line in lines] == [None, 20.0]
    assert [line['difference'] for line in lines] == [None, -1.25]
    text = summary.as_text(found).splitlines()
    assert text[2].split() == ['a', 'x2', '1', 'pil', 'inf', '-', '-', '1.0000']
    assert text[3].split() == ['a', 'x3', '1', 'pil', '20.000', '21.25', '-1.25', '0.5000']
    assert text[4] == 'A remark.'


def pixels_of(path, color):
    """Where a colour stands in a picture, as (rows, columns)."""
    with Image.open(path) as picture:
        distance = np.abs(np.asarray(picture.convert('RGB')).astype(int) - color).max(-1)
    return np.nonzero(distance < 3)


def test_the_curve_falls_where_the_figures_fall(tmp_path):
    values = {2: 38.0, 3: 34.0, 4: 30.0, 6: 26.0, 8: 22.0}
    rows = [
        Row(f'Set5_x{scale}', 'Set5', (scale, scale), 'given', 'benchmark', 5, {'psnr': value}, None)
        for scale, value in values.items()
    ]
    rows.append(Row('Set5_odd', 'Set5', (2, 9), 'given', 'benchmark', 5, {'psnr': 99.0}, None))  # in the table alone
    blue = (31, 119, 180)
    draw_psnr_over_scale(Summary('run', 'RDN-CLIT', [], 'psnr', rows), str(tmp_path / 'alone.png'))
    y, x = pixels_of(tmp_path / 'alone.png', blue)
    inside = x < 640  # the legend stands to the right
    y, x = y[inside], x[inside]
    assert y[x.argmin()] < y[x.argmax()] - 200  # downwards, over most of the height
    compared = [row._replace(paper=paper_psnr()['RDN-CLIT'].get(('Set5', row.scale[0]))) for row in rows[:5]]
    draw_psnr_over_scale(Summary('run', 'RDN-CLIT', [], 'psnr', compared), str(tmp_path / 'both.png'))
    assert len(pixels_of(tmp_path / 'both.png', blue)[0]) > 1.3 * len(y)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['alone.png', 'both.png']
