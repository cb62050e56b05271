"""What README.md and options/README.md say: blocks marked runnable run verbatim, options and links exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage import data

from clit_basicsr.cli.option_file import read_option_file
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.data.schedule import STAGE_KEYS

ROOT = Path(__file__).parent.parent
PAGES = ('README.md', 'CONTRIBUTING.md', 'options/README.md')
BLOCK = re.compile(r'<!-- runnable -->\n```(bash|python)\n(.*?)```', re.DOTALL)

# What each block writes, in the order of the pages.
RESULTS = {
    'README.md 1': {
        'photo_x3.7.jpg': (296, 222),
        'bigger.png': (160, 210),
        'enlarged/photo.jpg': (160, 120),
        'enlarged/beach/photo.jpg': (160, 120),
        'enlarged/letter.tif': (160, 120),
        'photo_compare.png': None,
        'photo_zoom.gif': None,
        'photo_attention.png': None,
    },
    'README.md 2': {},
    'options/README.md 1': {
        'datasets/DIV2K/DIV2K_train_HR.lmdb/data.mdb': None,
        'datasets/DIV2K/train_480/0001_s001.png': (480, 480),
        'datasets/DF2K.lmdb/data.mdb': None,
        'datasets/DIV2K/encoded.lmdb/meta_info.txt': None,
        'datasets/benchmark/Urban100/LR_bicubic/X3/0001x3.png': (164, 161),
    },
}


def text(page):
    return (ROOT / page).read_text(encoding='utf-8')


def runnable():
    return {f'{page} {n}': block for page in PAGES for n, block in enumerate(BLOCK.findall(text(page)), 1)}


def test_the_blocks_are_those_that_are_checked():
    assert runnable().keys() == RESULTS.keys()


def files_of_a_reader(folder):
    """The files that the blocks speak of."""
    photo, large = (Image.fromarray(data.astronaut()).crop((150, 0, *end)) for end in ((230, 60), (642, 484)))
    for name in ('photo.jpg', 'holiday/photo.jpg', 'holiday/beach/photo.jpg', 'scans/letter.tif'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(folder / name)
    for name in ('DIV2K/DIV2K_train_HR', 'Flickr2K/Flickr2K_HR', 'benchmark/Urban100/HR'):
        (folder / 'datasets' / name).mkdir(parents=True)
        large.save(folder / 'datasets' / name / '0001.png')


@pytest.mark.slow
@pytest.mark.parametrize('name', RESULTS)
def test_a_block_marked_runnable_runs_verbatim(name, tmp_path):
    language, block = runnable()[name]
    files_of_a_reader(tmp_path)
    command = ['bash', '-euo', 'pipefail', '-c', block] if language == 'bash' else [sys.executable, '-c', block]
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    for path, size in RESULTS[name].items():
        assert (tmp_path / path).stat().st_size > 0
        if size is not None:
            with Image.open(tmp_path / path) as image:
                assert image.size == size, path


def test_the_option_file_explained_line_by_line_has_the_options_and_values_of_the_real_one():
    (block,) = re.findall(r'```yaml\n(.*?)```', text('options/README.md'), re.DOTALL)
    shown, real = yaml.safe_load(block), read_option_file(str(ROOT / 'options' / 'train_clit_light.yml'))
    assert shown['datasets']['train'].keys() <= RandomScaleDataset.OPTIONS.keys()
    for name in ('name', 'model_type', 'num_gpu', 'manual_seed', 'network_g'):
        assert shown[name] == real[name]
    for key, value in shown['datasets']['train'].items():
        assert real['datasets']['train'].get(key, value) == value, key
    for key, value in shown['datasets']['val_x3'].items():
        assert real['datasets']['val_x3'].get(key, value) == value, key
    for block in ('path', 'train', 'val', 'logger'):
        for key, value in shown[block].items():
            expected = real[block].get(key, value)
            assert value == (expected[:1] if key == 'stages' else expected), key


def test_every_option_of_a_stage_is_in_the_table():
    table = text('options/README.md').split('## Stages')[1].split('## ')[0]
    named = set(re.findall(r'`(\w+)`', '\n'.join(line.split('|')[1] for line in table.splitlines() if '|' in line)))
    assert named == set(STAGE_KEYS)


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    lines = re.sub(r'```.*?```', '', text(page), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.+)$', lines, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)', text(page)):
        if target.startswith('http'):
            continue
        path, _, anchor = target.partition('#')
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in headings(str(linked.relative_to(ROOT))), target


@pytest.mark.parametrize('page', PAGES)
def test_files_and_folders_named_in_the_text_exist(page):
    for name in re.findall(r'`((?:options|scripts|tests|clit_basicsr)/[\w./-]+)`', text(page)):
        assert (ROOT / name).exists(), name
