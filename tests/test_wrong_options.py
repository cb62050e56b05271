"""Wrong option files: one line that names the key, and nothing is created."""

import argparse
import copy
import os

import pytest
import torch
from helpers.training import changed, prepare
from helpers.wrong_options import HOST, HOSTS, PLAIN, STAGES, WITHOUT_STAGES
from PIL import Image

from clit_basicsr.base.errors import UserError
from clit_basicsr.cli import option_file, options


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = prepare(tmp_path_factory.mktemp('wrong'))
    (path / 'empty').mkdir()
    (path / 'small').mkdir()
    for image in (path / 'images').iterdir():
        opened = Image.open(image)
        opened = opened.crop((0, 0, 60, 52))
        opened.save(image)
        opened.resize((30, 26)).save(path / 'small' / image.name)
    return path


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def refused(base, entry, folder, is_train=True):
    """The message about an option file with one entry changed; nothing may be created."""
    opt = copy.deepcopy(base)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    before, here = contents(folder), os.getcwd()
    os.chdir(folder)
    try:
        with pytest.raises(UserError) as caught:
            option_file.force(opt, [entry])
            options.complete(opt, args, str(folder), is_train)
    finally:
        os.chdir(here)
    assert contents(folder) == before
    message = str(caught.value)
    assert '\n' not in message and len(message) < 500
    return message


CASES = [(changed(), *case) for case in STAGES]
CASES += [({**changed(), **WITHOUT_STAGES}, *case) for case in PLAIN]
CASES += [(HOST, *case) for case in HOSTS]
assert len(CASES) >= 120


@pytest.mark.parametrize(('base', 'entry', 'message'), CASES, ids=[case[1][:60] for case in CASES])
def test_one_line_names_the_key_and_nothing_is_created(base, entry, message, folder):
    import re

    line = refused(base, entry, folder)
    assert re.search(message, line), line


@pytest.mark.parametrize('base', [changed(), {**changed(), **WITHOUT_STAGES}, HOST], ids=['stages', 'plain', 'host'])
def test_the_files_that_the_entries_change_are_right(base, folder, monkeypatch):
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    opt = copy.deepcopy({**base, 'name': f'right_{base["model_type"]}', '_mine': {'x': 1}, 'x-more': 3})
    expected = 12 if 'stages' in base['train'] else 4
    assert options.complete(opt, args, str(folder), True)['train']['total_iter'] == expected


TEST = {key: value for key, value in changed().items() if key not in ('train', 'logger')}
TEST['datasets'] = {'test_x2': {**TEST['datasets']['val_x2'], 'name': 'x2'}}


def test_random_weights_are_not_measured_unless_asked_for(folder, monkeypatch):
    assert 'path:pretrain_network_g is missing: a test without a checkpoint' in refused(TEST, 'scale=2', folder, False)
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    opt = {**copy.deepcopy(TEST), 'path': {'untrained_network_g': True}}
    assert options.complete(opt, args, str(folder), False)['name'] == 'tiny'
    bicubic = {**copy.deepcopy(TEST), 'network_g': {'type': 'Bicubic'}}
    assert options.complete(bicubic, args, str(folder), False)['network_g'] == {'type': 'Bicubic'}


def test_one_line_changes_the_decoder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    opt = {**changed(network_g__type='LIIF', train__stages=changed()['train']['stages'][:1]), 'name': 'liif'}
    options.complete(opt, args, str(folder), True)
    assert opt['network_g'].keys() == {'type', 'encoder', 'hidden_dims'}
    assert opt['warnings'] == [
        'network_g: LIIF has no num_branches, dim, num_heads, grid_size (options of other decoders): not used.'
    ]
    assert 'network_g:dimm is not an option' in refused(changed(network_g__type='LIIF'), 'network_g:dimm=3', folder)


def test_branches_that_no_stage_trains_are_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt='options.yml')
    opt = {**changed(train__stages=changed()['train']['stages'][:1]), 'name': 'one'}
    options.complete(opt, args, str(folder), True)
    assert opt['warnings'] == [
        'train:stages have at most 1 of the 3 branches of network_g: branches 2 to 3 are never trained.'
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('train:\n  lr: 1\n  lr: 0.1\n', 'line 3: lr already appears in line 2'),
        ('name: a\nval: {}\nname: b\n', 'line 3: name already appears in line 1'),
        ('a: ' + '[' * 50_000, 'nested more than 50 deep'),
        ('a: ' + '- ' * 50_000, 'line 1'),
        (
            'a: &a [x, x]\n'
            + ''.join(
                f'{c}: &{c} [*{p}, *{p}]\n'
                for p, c in zip('abcdefghijklmnopqrstu', 'bcdefghijklmnopqrstuv', strict=True)
            ),
            'more than 100,000 values',
        ),
        ('a: &a [1, *a]\n', 'holds itself|found undefined alias'),
        ('? [1, 2]\n: x\n', 'a key must be a word'),
        ('a: 2026-13-45\n', 'month'),
        ('x' * 1_000_001, 'longer than 1,000,000 characters'),
    ],
    ids=['twice', 'twice at the top', 'brackets', 'dashes', 'aliases', 'itself', 'list as key', 'date', 'length'],
)
def test_yaml_that_is_wrong_or_a_trap_is_one_line(text, message, tmp_path):
    import re

    file = tmp_path / 'options.yml'
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        option_file.read_option_file(str(file))
    assert re.search(message, str(caught.value)), caught.value
    assert '\n' not in str(caught.value)


def test_numbers_that_yaml_takes_for_words_are_numbers(tmp_path):
    file = tmp_path / 'options.yml'
    file.write_text("a: 1e-4\nb: [5E3, 2.e2]\nc: '1e-4'\nd: 1e4x\ne: {<<: {lr: 1}, lr: 2}\n")
    assert option_file.read_option_file(str(file)) == {
        'a': 1e-4, 'b': [5000.0, 200.0], 'c': '1e-4', 'd': '1e4x', 'e': {'lr': 2}
    }  # fmt: skip


def test_an_option_file_inside_the_experiment_is_not_archived_with_it(tmp_path):
    folder = prepare(tmp_path / 'inside')
    own = folder / 'experiments' / 'tiny' / 'options.yml'
    own.parent.mkdir(parents=True)
    own.write_text((folder / 'options.yml').read_text())
    args = argparse.Namespace(auto_resume=False, launcher='none', debug=False, opt=str(own))
    with pytest.raises(UserError, match='lies in the folder of this experiment'):
        options.complete(changed(), args, str(folder), True)
    assert own.is_file()


def test_a_programming_error_shows_its_traceback(tmp_path, monkeypatch):
    from clit_basicsr.cli import main, train

    def broken(args):
        raise RuntimeError('a mistake of ours')

    monkeypatch.setattr(train, 'run', broken)
    with pytest.raises(RuntimeError, match='a mistake of ours'):
        main(['train', '-opt', 'x.yml'])
    assert torch.is_grad_enabled()
