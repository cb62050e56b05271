"""The benchmark: what it counts, its medians and tables, and both of its commands from end to end, tiny."""

import json
import subprocess
import sys
from pathlib import Path

import benchmark
import cases
import compare_checkouts
import floor
import measure
import numpy as np
import pytest
import time_workload
import torch
import torch.nn.functional as F
from measure import Seconds
from result_tables import Compared, Floored, Sample, comparison_table, floor_table, peer_table, wide_table

from clit_basicsr.archs import CLIT, LIIF, LTE
from clit_basicsr.archs.clit_arch import split_scale
from clit_basicsr.ops.attention.reference import Head

ROOT = Path(__file__).parents[1]
ENCODER = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}


def small_network(system='CLIT-3'):
    torch.manual_seed(0)
    if system in ('LIIF', 'LTE'):
        return {'LIIF': LIIF, 'LTE': LTE}[system](encoder=ENCODER, hidden_dims=(8,))
    return CLIT(encoder=ENCODER, num_branches=3, dim=32, num_heads=1, grid_size=3, hidden_dims=(8,))


@pytest.fixture
def small(monkeypatch):
    """Small networks and workloads, a machine of 100 GFLOP/s."""
    monkeypatch.setattr(cases, 'network', small_network)
    monkeypatch.setattr(measure, 'machine_rate', lambda: 1e11)
    monkeypatch.setattr(cases, 'DENSE', [cases.Dense('LIT', (6, 5), 2), cases.Dense('CLIT-3', (2, 2), 18)])
    monkeypatch.setattr(cases, 'PEERS', [cases.Dense(system, (6, 5), 2) for system in ('LIT', 'LIIF', 'LTE')])
    monkeypatch.setattr(cases, 'WIDE', [cases.Wide(size, 2, t) for size in ((4, 70), (5, 5)) for t in (False, True)])
    monkeypatch.setattr(cases, 'TRAINING', [cases.Training('LIT, batch 1, x2', 1, (2,))])


def table_rows(text):
    """The cells of a Markdown table, the head first."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in (lines[0], *lines[2:])]


def test_the_floor_of_a_picture_by_hand():
    # Per LR pixel: encoder 9 (3 * 64 + 33 * 64 * 64), first convolution 9 * 64 * 256, q, k, v 27 * 256 * 256, products
    # of the first layer (49 * 256 + 2) * 256. Per query: their sum 49 * 8 * 256, decoder 3 * 256 * 256 + 3 * 256,
    # attention 49 * 256; four queries for each pixel.
    pixel = 1_218_240 + 147_456 + 1_769_472 + 3_211_776
    query = 100_352 + 197_376 + 12_544
    assert floor.dense_operations(cases.Dense('LIT', (64, 64), 2)) == 2 * 64 * 64 * (pixel + 4 * query)
    wide = cases.Wide((96, 1020), 2, True)
    assert floor.dense_operations(wide) == 2 * 96 * 1020 * (pixel - 1_218_240 + 4 * query)
    assert floor.not_counted(wide) == (4 * 256, 7 * 7 * 8)


def test_the_floor_of_a_step_by_hand():
    pixel, query = 1_218_240 + 147_456 + 2 * 1_769_472, 3_211_776 + 197_376 + 12_544
    step = cases.Training('CLIT-2', 2, (2.5, 2.5))
    assert floor.operations(step) == 6 * 2 * 2304 * (pixel + 2 * query)
    assert floor.not_counted(step) == (2048, 784)


def test_products_of_sixteen_vectors_pay_from_factor_16_on():
    queries = 432**2
    # Once for each of 384 x 384 fine pixels; or for 16 vectors of 24 x 24 cells, and four terms for each fine pixel.
    plain = 384**2 * 3_211_776
    low_rank = 24**2 * 16 * 3_211_776 + 384**2 * 4 * 100_352
    assert low_rank == pytest.approx(89e9, rel=5e-3)
    assert floor.first_layer((24, 24), 16.0, queries, False) == plain + queries * 100_352
    assert floor.first_layer((24, 24), 16.0, queries, True) == low_rank + queries * 100_352
    for factor in (1.0, 4.0, 12.5):
        ways = [floor.first_layer((24, 24), factor, queries, low_rank) for low_rank in (False, True)]
        assert ways[0] == ways[1]


@pytest.mark.parametrize('factor', [8, 16])
def test_upsampled_and_convolved_features_have_rank_16_within_a_cell(factor):
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(1, 8, 6, 6, generator=gen, dtype=torch.float64)
    weight = torch.randn(40, 8, 3, 3, generator=gen, dtype=torch.float64)
    fine = F.conv2d(F.interpolate(z, scale_factor=factor, mode='bilinear'), weight, padding=1)
    first = 2 * factor + factor // 2  # the cell between four LR pixels
    cell = fine[0, :, first : first + factor, first : first + factor]
    assert torch.linalg.matrix_rank(cell.flatten(1)) == floor.RANK
    assert torch.linalg.matrix_rank(cell[:, 1:-1, 1:-1].flatten(1)) == floor.CORNERS


def test_small_scales_answer_queries_one_by_one():
    # 1.0 queries per pixel: sharing makes as many products, and costs the sums in addition.
    assert floor.first_layer((48, 48), 1.0, 48 * 48, False) == 48 * 48 * 3_211_776


def test_the_counts_are_those_of_the_networks():
    net = CLIT(encoder=cases.EDSR_BASELINE, num_branches=1)
    branch = net.branches[0]
    convs = [layer.weight.numel() for layer in net.encoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert sum(convs) == floor.ENCODER
    assert net.conv_in.weight.numel() == floor.FIRST_CONV
    assert 3 * branch.conv_v.weight.numel() == floor.QKV_CONVS
    linear = [layer.weight.numel() for layer in branch.decoder if isinstance(layer, torch.nn.Linear)]
    assert [linear[0], sum(linear[1:])] == [floor.FIRST_LAYER, floor.DECODER]
    gelus = [layer for layer in branch.decoder if isinstance(layer, torch.nn.GELU)]
    assert len(gelus) == len(floor.HIDDEN)
    assert branch._head(None) == Head(floor.HEADS, floor.GRID, None)


def test_systems_are_named_by_the_branches_that_answer():
    for case in (*cases.DENSE, *cases.PEERS):
        if case.system not in ('LIIF', 'LTE'):
            count = len(split_scale((case.scale, case.scale), 3))
            assert case.system == ('LIT' if count == 1 else f'CLIT-{count}')


def test_medians_of_each_clock_and_rates(monkeypatch):
    times = {'fast': iter([(9, 9), (1, 4), (3, 5), (2, 30)]), 'slow': iter([(50, 60)])}
    rates = iter([1.0, 5, 2, 9, 3, 8, 4])
    monkeypatch.setattr(measure, 'machine_rate', lambda: next(rates))
    monkeypatch.setattr(measure, 'timed', lambda function: Seconds(*next(times[function()])))
    measured = measure.measure({'fast': lambda: 'fast', 'slow': lambda: 'slow'}, 3, slow=('slow',))
    assert measured.medians == {'fast': Seconds(2, 5), 'slow': Seconds(50, 60)}
    assert measured.rates == [1, 5, 2, 9, 3, 8]  # before each of five calls, and at the end
    assert (measured.median_rate, measured.fastest_rate) == (4, 9)


def test_the_table_of_floors():
    row = Floored('CLIT-3', {'cpu': (4.0, 4.5), 'reference': (20.0, 21.0)}, 1e11, 2e11, 2e11, 1e11, (3072, 1176))
    plain = row._replace(name='LIT', low_rank_operations=2e11, seconds={'cpu': (3.0, 3.5)})
    head, first, second = table_rows(floor_table([row, plain], ['cpu', 'reference'], ['reference']))
    cells = dict(zip(head, first, strict=True))
    assert [cells['floor (median rate)'], cells['floor (fastest rate)']] == ['2.00', '1.00']
    assert cells['floor with rank 16 (median rate)'] == '1.00'
    assert [cells['cpu'], cells['cpu, wall']] == ['4.00 (2.00x, 4.00x, 4.00x)', '4.50']
    assert [cells['reference : cpu'], cells['GELU, exp per query, not in the floor']] == ['5.0x', '3072, 1176']
    assert [cells['GFLOP/s, median'], cells['fastest']] == ['100', '200']
    cells = dict(zip(head, second, strict=True))
    assert cells['cpu'] == '3.00 (1.50x, 3.00x)'
    assert cells['reference'] == cells['reference : cpu'] == cells['floor with rank 16 (median rate)'] == ''


def test_the_tables_of_peers_and_wide_pictures():
    _, row = table_rows(peer_table([('48x48 x2', {'LIT': (1.0, 1.1), 'LIIF': (2.0, 2.1), 'LTE': (0.5, 0.6)})]))
    assert row == ['48x48 x2', 'LIT', '1.00', '1.10', '2.00', '2.10', '0.50', '0.500', '0.600', '2.00']
    _, strip, square = table_rows(wide_table([('strip', 250.0, 260.0, 50.0), ('square', 100.0, 101.0, 50.0)]))
    assert strip == ['strip', '250.0 (5.00x)', '260.0', '50.0', '2.50x']
    assert square[-1] == '1.00x'


def test_the_comparison_takes_medians_before_the_ratio():
    old = [Sample(4.0, 5.0, 100.0), Sample(2.0, 9.0, 90.0), Sample(40.0, 6.0, 95.0)]
    new = [Sample(1.0, 1.5, 80.0), Sample(1.0, 1.6, 85.0), Sample(9.0, 1.7, 70.0)]
    row = Compared('work', old, new, 2e-6)
    assert row.ratio == 0.25
    _, cells = table_rows(comparison_table([row]))
    assert cells == ['work', '4.00', '1.00', '0.250', '6.00', '1.60', '95', '80', '2.0e-06']


def test_differences_of_results():
    old = {'a': np.array([1.0, -4.0], np.float32), 'b': np.array([0.1], np.float32)}
    new = {'a': np.array([1.0, -3.0], np.float32), 'b': np.array([0.1], np.float32)}
    assert compare_checkouts.difference(old, new) == 0.25
    assert compare_checkouts.difference(old, old) == 0
    assert compare_checkouts.difference({'a': np.zeros(2)}, {'a': np.ones(2)}) == np.inf
    with pytest.raises(compare_checkouts.Failed, match='shapes'):
        compare_checkouts.difference(old, {'a': old['a']})
    with pytest.raises(compare_checkouts.Failed, match='finite'):
        compare_checkouts.difference(old, new | {'b': np.array([np.nan])})
    rows = [Compared('LIT', [], [], 2e-4), Compared('CLIT', [], [], 2e-6), Compared('none', [], [], None)]
    rows.append(Compared(compare_checkouts.UPSCALE, [], [], 1 / 255))
    assert compare_checkouts.disagreements(rows) == ['LIT']


def test_checkouts_take_turns():
    order = []

    def run(checkout, result):
        order.append((checkout, result))
        return [Sample(len(order), 0, 0)] * 2

    old, new = compare_checkouts.alternate(run, ('old', 'new'), ('1', '2'), 3)
    assert [checkout for checkout, _ in order] == ['old', 'new', 'new', 'old', 'old', 'new']
    assert set(order) == {('old', '1'), ('new', '2')}
    assert [[s.cpu for s in side] for side in (old, new)] == [[1, 1, 4, 4, 5, 5], [2, 2, 3, 3, 6, 6]]


@pytest.mark.parametrize('tiled', [False, True])
def test_given_features_give_the_picture_of_the_encoder(small, tiled):
    net, size = small_network().eval(), (5, 70)
    lq = cases.picture(size)
    expected, features = net.upscale(lq, scale=2), net.encode(lq).z
    call = cases.wide_call(net, cases.Wide(size, 2, tiled))
    net.encoder.features = features
    assert (call() - expected).abs().max() < 1e-6


def test_the_benchmark_from_end_to_end(small, monkeypatch, tmp_path, capsys):
    command = ['benchmark.py', 'dense', 'peers', 'wide', 'train', '--repeats', '1', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', [*command, '--backends', 'torch', 'reference 2048'])
    threads = torch.get_num_threads()
    benchmark.main()
    torch.set_num_threads(threads)
    text = (tmp_path / 'RESULTS.md').read_text()
    assert text in capsys.readouterr().out
    assert f'- instruction set: {torch.backends.cpu.get_cpu_capability()}' in text
    assert (tmp_path / 'plot.png').stat().st_size > 0
    tables = {part.split('\n')[0]: table_rows(part) for part in text.split('## ')[1:]}
    names = [[row[0] for row in rows[1:]] for rows in tables.values()]
    assert names[:2] == [['LIT 5x6 x2', 'CLIT-3 2x2 x18'], ['5x6 x2']]
    assert names[2] == [f'wide {size} x2, {kind}' for size in ('70x4', '5x5') for kind in ('untiled', 'tiles')]
    assert names[3] == ['LIT, batch 1, x2']
    head, _, cascade = tables['Whole pictures, encoder included']
    assert cascade[head.index('floor with rank 16 (median rate)')]


@pytest.mark.parametrize('name', ['CLIT-3 2x2 x18', 'wide 70x4 x2, tiles', 'LIIF 5x6 x2', 'train LIT, batch 1, x2'])
def test_a_workload_leaves_times_memory_and_its_result(small, name, monkeypatch, tmp_path, capsys):
    file, threads = tmp_path / 'result.npz', torch.get_num_threads()
    monkeypatch.setattr(sys, 'argv', ['time_workload.py', name, '--runs', '3', '--result', str(file)])
    time_workload.main()
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert len(found['cpu']) == len(found['wall']) == 3
    assert found['peak'] >= 0
    result = compare_checkouts.read_result(file)
    if name.startswith('train'):
        assert result.keys() >= {'encoder.conv_first.weight', 'conv_in.weight'}
        assert 'position_encoder.proj.bias' not in result
    else:
        assert result['picture'].shape[:2] == (1, 3)
    assert all(np.isfinite(values).all() for values in result.values())


def test_a_missing_checkout_is_refused(tmp_path):
    with pytest.raises(compare_checkouts.Failed, match='holds no clit_basicsr'):
        compare_checkouts.check_package(tmp_path, tmp_path)


def test_commands_of_two_checkouts(monkeypatch, tmp_path, capsys):
    """Stand-ins for the package: one of them writes another picture, the other fails at ``--help``."""
    main = """
import sys
from PIL import Image
if '--help' in sys.argv:
    sys.exit({code!r})
options = dict(zip(sys.argv[2:], sys.argv[3:]))
assert options['--model'].endswith('net.pth') and options['-s'] == '3.4'
with Image.open('photograph.png') as picture:
    assert picture.size == (510, 339)
    picture.point(lambda value: max(value - {darker}, 0)).save(options['-o'])
"""
    checkouts = []
    for name, values in (('old', {'code': None, 'darker': 0}), ('new', {'code': 'no help', 'darker': 51})):
        package = tmp_path / name / 'clit_basicsr'
        package.mkdir(parents=True)
        (package / '__init__.py').write_text('')
        (package / '__main__.py').write_text(main.format(**values))
        checkouts.append(str(tmp_path / name))
    network = ['--network-file', str(tmp_path / 'net.pth')]
    monkeypatch.setattr(compare_checkouts, 'known', lambda *_: {'names': [], 'instruction set': 'AVX2'})
    monkeypatch.setattr(sys, 'argv', ['compare_checkouts.py', *checkouts, *network, '--repeats', '2'])
    assert compare_checkouts.main() == 1
    out = capsys.readouterr().out
    _, row = table_rows(out)
    assert row[0] == compare_checkouts.UPSCALE
    assert 0.15 < float(row[-1]) <= 0.2 / 0.9
    assert f'failed: {compare_checkouts.HELP}: exit code 1 in {checkouts[1]}: no help' in out
    assert f'failed: {compare_checkouts.UPSCALE}: the results differ' in out


def test_the_peak_of_a_command_is_its_own():
    script = str(ROOT / 'scripts' / 'benchmarks' / 'time_command.py')
    code = 'x = bytearray({} << 20); import sys; print(1); sys.exit(5)'
    found = []
    for size in (1, 65):
        command = [sys.executable, script, sys.executable, '-c', code.format(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        assert done.returncode == 5
        found.append(json.loads(done.stdout))
    assert 60 < found[1]['peak'] - found[0]['peak'] < 70
    assert found[1]['cpu'] > 0
