"""Reading option files, --force_yml, and the types of options."""

from collections.abc import Sequence
from typing import Literal

import pytest

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.option_types import describe, fits, nearest, options_of
from clit_basicsr.cli.option_file import force, parse_value, read_option_file


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3),
        ('-1', -1),
        ('+2', 2),
        ('007', 7),
        ('1e-4', 1e-4),
        ('-2.5E3', -2500.0),
        ('.5', 0.5),
        ('1.', 1.0),
        ('!!float 5e3', 5000.0),
        ('True', True),
        ('false', False),
        ('~', None),
        ('None', None),
        ('', None),
        ('[1e-4, -1, true, None]', [1e-4, -1, True, None]),
        ('[[[1, 4]], [[1, 4], [1, 2]]]', [[[1, 4]], [[1, 4], [1, 2]]]),
        ('{type: disk}', {'type': 'disk'}),
        ("'12'", '12'),
        ('inf', 'inf'),
        ('nan', 'nan'),
        ('1_000', '1_000'),
        ('yes', 'yes'),
        ('a=b', 'a=b'),
        ('C:/x:y', 'C:/x:y'),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_forced_options_reach_lists_and_make_parents():
    opt = {'train': {'stages': [{'iters': 1}, {'iters': 2}]}, 'val': None, 'name': 'n'}
    entries = [
        'train:stages:1:iters=5',
        'train:stages:-2:lr=1e-4',
        'val:metrics:psnr:type=x=y',
        'a:b:c=~',
        'name=other',
    ]
    force(opt, entries)
    assert opt == {
        'train': {'stages': [{'iters': 1, 'lr': 1e-4}, {'iters': 5}]},
        'val': {'metrics': {'psnr': {'type': 'x=y'}}},
        'a': {'b': {'c': None}},
        'name': 'other',
    }


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ('train', 'expected key=value'),
        ('train:=3', 'expected key=value'),
        ('=3', 'expected key=value'),
        ('train:stages:2:iters=3', '2 is not an index of a list of 2'),
        ('train:stages:-3=3', '-3 is not an index of a list of 2'),
        ('train:stages:first:iters=3', 'first is not an index'),
        ('name:first=3', "name is 'n', not a block"),
        ('train:stages=[1, 2', 'not complete'),
    ],
)
def test_forced_options_that_cannot_be(entry, message):
    opt = {'train': {'stages': [{}, {}]}, 'name': 'n'}
    with pytest.raises(UserError, match=message):
        force(opt, [entry])


def test_anchors_and_merge_keys_give_blocks_of_their_own(tmp_path):
    file = tmp_path / 'options.yml'
    file.write_text('a: &a {x: 1, deep: {y: 2}}\nb: {<<: *a, x: 3}\nc: *a\n')
    opt = read_option_file(str(file))
    force(opt, ['b:deep:y=5', 'c:x=6'])
    assert opt == {'a': {'x': 1, 'deep': {'y': 2}}, 'b': {'x': 3, 'deep': {'y': 5}}, 'c': {'x': 6, 'deep': {'y': 2}}}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'name: x\ntrain:\n  lr: [1, 2\nval: 3\n', r'options\.yml, line [34]: '),
        (b'name: x\n\tval: 3\n', r'options\.yml, line 2: '),
        (b'name: !!python/object:os.system {}\n', r'options\.yml, line 1: '),
        (b'', 'holds nothing'),
        (b'- 1\n', 'not a block'),
        (b'\xff\xfe\x00', 'not a text file|options'),
    ],
)
def test_files_that_are_no_option_files_are_one_line(content, message, tmp_path):
    file = tmp_path / 'options.yml'
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_option_file(str(file))
    assert '\n' not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r'nothing\.yml: No such file'):
        read_option_file(str(tmp_path / 'nothing.yml'))
    with pytest.raises(UserError, match='Is a directory'):
        read_option_file(str(tmp_path))


@pytest.mark.parametrize(
    ('value', 'annotation', 'ok'),
    [
        (3, int, True),
        (3.0, int, False),
        (True, int, False),
        (True, float, False),
        (3, float, True),
        ('3', float, False),
        (None, str | None, True),
        (None, str, False),
        ([1, 2], Sequence[int], True),
        ([1, 2.5], Sequence[int], False),
        (4, Sequence[int], False),
        ('ab', Sequence[str], False),
        ([1], tuple[float, ...], True),
        ('pil', Literal['pil', 'matlab'], True),
        ('cv2', Literal['pil', 'matlab'], False),
        ([2, 2], (int, float, list), True),
        ({}, (int, float, list), False),
        (1, bool, False),
        ({'a': 1}, dict[str, int], True),
    ],
)
def test_types_of_options(value, annotation, ok):
    assert fits(value, annotation) is ok


def test_types_in_the_words_of_an_option_file():
    assert describe(str | None) == 'a word or ~'
    assert describe((int, float, list)) == 'a number or a list'
    assert describe(Sequence[int]) == 'a list'
    assert describe(Literal['pil', 'matlab']) == 'pil or matlab'
    assert describe(int) == 'a whole number'


def test_nearest_name():
    assert nearest('clit', ['LIT', 'CLIT', 'Bicubic']) == 'CLIT'
    assert nearest('grid', ['dim', 'grid_size', 'cell']) == 'grid_size'
    assert nearest(3, ['a', 'b']) in ('a', 'b')
    assert nearest('x', []) == ''


def test_options_of_a_class_without_annotations_have_the_types_of_their_defaults():
    class Host:
        def __init__(self, scale, num_feat=64, mean=(0.4, 0.4), squeeze=False, name='x', other=None, **rest):
            pass

    options, required = options_of(Host)
    assert required == ['scale']
    assert list(options) == ['scale', 'num_feat', 'mean', 'squeeze', 'name', 'other']
    values = {'scale': 'x', 'num_feat': 2, 'mean': [1], 'squeeze': True, 'name': 'y', 'other': 4}
    assert all(fits(value, options[key]) for key, value in values.items())
    wrong = {'num_feat': 'x', 'mean': 1, 'squeeze': 1, 'name': 4}
    assert not any(fits(value, options[key]) for key, value in wrong.items())
