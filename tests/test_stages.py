"""What a stage of cumulative training freezes, how its branch begins, which loss and images it uses."""

import pytest
import torch
from helpers.training import changed, prepare
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.cli.info import describe
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.data.schedule import parse_stages
from clit_basicsr.hosts.basicsr.changes import check_changes, kept_options
from clit_basicsr.models import CumulativeSRModel

SHARED = ('conv_in', 'position_encoder')


def stages(**second):
    """Two iterations each; the third stage trains all again."""
    common = {'iters': 2, 'lr': 0.05, 'milestones': []}
    return [
        {'branches': 1, 'scales': [[[1, 4]]]} | common,
        {'branches': 2, 'scales': [[[1, 4], [1, 4]]]} | common | second,
        {'branches': 2, 'scales': [[[1, 4], [1, 4]]]} | common,
    ]


def new_model(folder, **second):
    """A model with weight decay and averages, before its first iteration."""
    optim = {'type': 'AdamW', 'betas': [0.9, 0.99], 'weight_decay': 0.1}
    opt = changed(train__stages=stages(**second), train__optim_g=optim, network_g__num_branches=2)
    opt |= {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1}
    opt['path'] |= {'models': str(folder), 'training_states': str(folder), 'log': str(folder)}
    torch.manual_seed(0)
    return CumulativeSRModel(opt)


def batch(factors):
    draw = torch.Generator().manual_seed(len(factors))
    scales = torch.tensor(factors, dtype=torch.float64).unsqueeze(1).repeat(2, 1, 2)
    return {
        'lq': torch.rand(2, 3, 9, 9, generator=draw),
        'gt': torch.rand(2, 20, 3, generator=draw),
        'coord': torch.rand(2, 20, 2, generator=draw) * 2 - 1,
        'cell': torch.full((2, 2), 2 / round(9 * float(scales[0].prod(0)[0]))),
        'scales': scales,
        'drawn': scales[:, :, 0],
        'gt_path': ['a', 'b'],
    }


def iterate(model, *iterations):
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.feed_data(batch([2.5] if iteration <= 2 else [1.5, 2.5]))
        model.optimize_parameters(iteration)


def copied(model):
    return [{name: value.clone() for name, value in net.state_dict().items()} for net in model._networks()]


def part(name):
    """'encoder', 'shared', 'branches.0' or 'branches.1'."""
    first = name.split('.')[0]
    return 'shared' if first in SHARED else '.'.join(name.split('.')[:2]) if first == 'branches' else first


def moved(before, after):
    return {part(name) for name, value in after.items() if value.dim() and not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ('frozen', 'trained'),
    [
        (None, {'encoder', 'shared', 'branches.0', 'branches.1'}),
        (['encoder'], {'shared', 'branches.0', 'branches.1'}),
        (['branches'], {'encoder', 'branches.1'}),
        (True, {'branches.1'}),
    ],
)
def test_frozen_parts_stay_bit_equal_in_both_networks(frozen, trained, tmp_path):
    model = new_model(tmp_path, freeze=frozen)
    iterate(model, 1, 2)
    averages = copied(model)[1]
    iterate(model, 3)
    before, lq = copied(model), torch.rand(1, 3, 9, 7)
    answer = model.net_g_ema.upscale(lq, scale=(2, 3.5))  # branch 1 alone
    iterate(model, 4)
    after = copied(model)
    assert [moved(*pair) for pair in zip(before, after, strict=True)] == [trained, trained]
    for name, value in model.net_g.named_parameters():
        assert (value.grad is not None) == (part(name) in trained), name
        if part(name) not in trained:  # frozen is what was validated
            assert torch.equal(after[0][name], averages[name]) and torch.equal(after[1][name], averages[name])
    assert torch.equal(model.net_g_ema.upscale(lq, scale=(2, 3.5)), answer) == (frozen is True)
    assert model.net_g.encode(lq).z.requires_grad == ('encoder' in trained)  # whether autograd records the encoder
    iterate(model, 5, 6)  # the third stage trains all
    assert moved(after[0], copied(model)[0]) == {'encoder', 'shared', 'branches.0', 'branches.1'}


def test_gradients_of_the_new_branch_are_those_without_freezing(tmp_path):
    gradients = []
    for frozen in (None, True):
        model = new_model(tmp_path, freeze=frozen)
        model.update_learning_rate(3)  # both begin stage 2 with the weights of the first iteration
        model.feed_data(batch([1.5, 2.5]))
        model.optimize_parameters(3)
        gradients.append({name: value.grad for name, value in model.net_g.branches[1].named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_how_a_new_branch_begins(tmp_path):
    models = {init: new_model(tmp_path / init, init=init) for init in ('default', 'copy', 'zero')}
    for model in models.values():
        iterate(model, 1, 2)
        model.update_learning_rate(3)
    for net in models['copy']._networks():
        for name, value in net.branches[0].state_dict().items():
            assert torch.equal(net.branches[1].state_dict()[name], value)
    assert not torch.equal(*(net.branches[1].conv_v.weight for net in models['copy']._networks()))
    assert not torch.equal(*(models[init].net_g.branches[1].conv_v.weight for init in ('default', 'zero')))
    for net in models['zero']._networks():
        assert torch.equal(*(branch.conv_v.weight for branch in net.branches[:2]))
        feat, one, two = net.encode(torch.rand(2, 3, 8, 7)), batch([2.5]), [1.25, 2]
        first, both = (net.query(feat, one['coord'], one['cell'], scales) for scales in ([2.5], two))
        skip = net.finish(torch.zeros_like(both), feat, one['coord'])
        torch.testing.assert_close(both - skip, 0.75 * (first - skip))  # equation (9) with a second value of 0
        net.residual_weight = 1
        torch.testing.assert_close(net.query(feat, one['coord'], one['cell'], two), first)


def test_a_stage_has_its_own_loss(tmp_path):
    model = new_model(tmp_path, pixel_opt={'type': 'MSELoss', 'loss_weight': 3.0})
    for iteration, expected in ((1, torch.nn.L1Loss()), (3, lambda a, b: 3 * torch.nn.MSELoss()(a, b))):
        iterate(model, iteration)
        torch.testing.assert_close(model.log_dict['l_pix'], expected(model.output, model.gt).detach())


def test_a_stage_has_its_own_patches(tmp_path):
    folder = prepare(tmp_path / 'run')
    opt = {'dataroot_gt': str(folder / 'images'), 'lq_size': 8, 'num_queries': 4, 'stages': stages(lq_size=17)}
    dataset = RandomScaleDataset(opt)
    for number, side in ((1, 8), (2, 17), (3, 17), (4, 8)):
        for sample in dataset.__getitems__([(number, i) for i in range(2)]):
            assert sample['lq'].shape == (3, side, side)
            size = round(side * float(sample['scales'][:, 0].prod()))
            assert size <= 52 and sample['cell'].tolist() == pytest.approx([2 / size] * 2)  # fits the images
    with pytest.raises(UserError, match=r'52 pixels is below the LR patch \(lq_size: 53\)'):
        RandomScaleDataset(opt | {'stages': stages(lq_size=53)}).__getitems__([(2, 0)])


def test_patches_of_a_stage_may_be_smaller_than_those_of_the_data_set(tmp_path):
    folder = prepare(tmp_path / 'run')
    small = stages(lq_size=5, scales=[[[1, 1.5], [1, 1]]])
    opt = {'dataroot_gt': str(folder / 'images'), 'lq_size': 8, 'num_queries': 4}
    for number in (2, 3):
        for sample in RandomScaleDataset(opt | {'stages': small}).__getitems__([(number, i) for i in range(2)]):
            size = round(5 * float(sample['scales'][:, 0].prod()))
            assert size < 8 and sample['cell'].tolist() == pytest.approx([2 / size] * 2)
    each = {'scale_per_image': True, 'num_queries': 26}
    with pytest.raises(UserError, match=r'may have 25 pixels only \(scale 1\), so at most that many queries; got 26'):
        RandomScaleDataset(opt | each | {'stages': small})


def test_small_images_are_replaced_by_large_ones(tmp_path):
    folder = prepare(tmp_path / 'run')
    for i in range(4):
        Image.new('RGB', (50 + i, 90)).save(folder / 'images' / f'small_{i}.png')
    opt = {'dataroot_gt': str(folder / 'images'), 'lq_size': 8, 'num_queries': 4, 'manual_seed': 1}
    plain, picky = (RandomScaleDataset(opt | {'stages': stages(min_size=least)}) for least in (0, 52))
    seen = set()
    for number in range(8):
        samples = [dataset.__getitems__([(number, i) for i in range(3)]) for dataset in (plain, picky)]
        for before, after in zip(*samples, strict=True):
            if number in (2, 3):  # of the second stage, here without an end
                continue
            assert torch.equal(before['lq'], after['lq']) and before['gt_path'] == after['gt_path']
    for number in (2, 3):
        chosen = [one['gt_path'] for one in picky.__getitems__([(number, i) for i in range(40)])]
        seen |= set(chosen)
        assert chosen == [one['gt_path'] for one in picky.__getitems__([(number, i) for i in range(40)])]
    # 52 pixels are enough: those that the helper makes, and two of the others
    assert {path.rsplit('/', 1)[1] for path in seen} == {'0.png', '1.png', '2.png', 'small_2.png', 'small_3.png'}
    with pytest.raises(UserError, match='no image has a smaller side of at least 300 pixels'):
        RandomScaleDataset(opt | {'stages': stages(min_size=300)}).__getitems__([(2, 0)])


@pytest.mark.parametrize(
    ('second', 'message'),
    [
        ({'init': 'cpoy'}, "stage 2: init: 'cpoy' is not known; the nearest is 'copy'"),
        ({'freeze': ['encoder', 'branch']}, "stage 2: freeze: 'branch' is not known; the nearest is 'branches'"),
        ({'freeze': 3}, 'stage 2: freeze: must be true or a list'),
        ({'frezee': True}, "stage 2: key 'frezee' is not known; the nearest valid one is 'freeze'"),
        ({'pixel_opt': 'MSELoss'}, 'stage 2: pixel_opt: must be a block'),
        ({'min_size': -1}, 'stage 2: min_size: must be a whole number of at least 0'),
        ({'lq_size': 0}, 'stage 2: lq_size: must be a whole number of at least 1'),
        ({'branches': 1, 'scales': [[[1, 4]]], 'init': 'zero'}, 'stage 2: init: the stage adds no branch'),
        ({'branches': 1, 'scales': [[[1, 4]]], 'freeze': ['branches']}, 'stage 2: freeze: the stage adds no branch'),
        ({'freeze': True, 'scales': [[[1, 4]]]}, 'stage 2: scales: alternative 1 has 1 range, but freeze leaves'),
    ],
)
def test_wrong_stages(second, message):
    with pytest.raises(UserError) as error:
        parse_stages(stages(**second))
    assert message in str(error.value)


def test_first_stage_has_no_earlier_branches():
    first, second, _ = stages()
    assert parse_stages([first | {'freeze': 'encoder'}, second])[0].freeze == ('encoder',)
    for wrong in ({'freeze': True}, {'init': 'copy'}):
        with pytest.raises(UserError, match=r'stage 1: (freeze|init): there is no branch before'):
            parse_stages([first | wrong, second])


def test_what_is_frozen_may_not_change_once_the_stage_has_begun():
    opt = changed(train__stages=stages(freeze=['encoder'], init='copy'))
    for iteration, key, other in ((3, 'freeze', True), (3, 'init', 'zero'), (4, 'freeze', None)):
        new = changed(train__stages=stages(**{'freeze': ['encoder'], 'init': 'copy', key: other}))
        with pytest.raises(UserError, match=f'train:stages:1:{key}: '):
            check_changes(kept_options(opt), new, iteration)
        assert len(check_changes(kept_options(opt), new, 2)) == 1  # at the end of the first stage


def test_info_describes_the_stages_of_a_training_state(tmp_path):
    opt = changed(train__stages=stages(freeze=True, init='zero', pixel_opt={'type': 'MSELoss'}, min_size=300))
    state = {'epoch': 0, 'iter': 3, 'optimizers': [], 'schedulers': [], 'options': kept_options(opt)}
    torch.save(state, tmp_path / '3.state')
    text = '\n'.join(describe(tmp_path / '3.state'))
    assert 'training state after iteration 3' in text
    assert (
        'stage 2: branches 1 to 2, 2 iterations, learning rate 0.05, frozen: encoder and earlier branches, init: zero, '
        'MSELoss, images of at least 300 pixels a side'
    ) in text
    torch.save(state | {'iter': '3'}, tmp_path / '3.state')
    with pytest.raises(UserError, match='is not a training state of BasicSR, or it is damaged: its iter'):
        describe(tmp_path / '3.state')
