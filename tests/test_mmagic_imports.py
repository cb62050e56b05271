"""What makes `import mmagic` work, on an mmcv that is all there, one without operators (mmcv-lite), and none."""

import subprocess
import sys

import pytest

from clit_basicsr import cli
from clit_basicsr.cli import mmagic_tool

LITE = 'from mmcv.ops.upfirdn2d import upfirdn2d\nimport mmcv._ext\n'
USE = """
import importlib, sys
import numpy as np
from clit_basicsr.hosts.mmagic import imports as mmagic_imports
mmagic_imports.prepare()
mmagic_imports.prepare()
assert np.bool8 is np.bool_
"""
LITE_USE = """
from mmcv.ops import DeformConv2d, deform_conv2d, upfirdn2d
from mmcv.ops.fused_bias_leakyrelu import FusedBiasLeakyReLU, fused_bias_leakyrelu
from mmcv.ops.upfirdn2d import upfirdn2d as function
class Layer(DeformConv2d):
    def __init__(self):
        super().__init__()
assert sum(type(finder).__name__ == '_OpsFinder' for finder in sys.meta_path) == 1
import mmcv.ops
assert not hasattr(mmcv.ops, '__all__')
for use in (Layer, DeformConv2d, deform_conv2d, upfirdn2d, mmcv.ops.upfirdn2d, function, FusedBiasLeakyReLU):
    try:
        use(1)
    except ValueError as error:
        print(error)
    else:
        raise AssertionError(use)
"""


def run(code, folder):
    """What the code prints after `prepare()`, with the packages of that folder before all others."""
    command = f'import sys\nsys.path.insert(0, {str(folder)!r})\n{USE}{code}'
    done = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def mmcv(tmp_path):
    """A package mmcv with these operators."""

    def write(ops):
        (tmp_path / 'mmcv' / 'ops').mkdir(parents=True)
        (tmp_path / 'mmcv' / '__init__.py').touch()
        (tmp_path / 'mmcv' / 'ops' / '__init__.py').write_text(ops)
        (tmp_path / 'mmcv' / 'ops' / 'upfirdn2d.py').write_text("def upfirdn2d(x):\n    return f'real {x}'\n")
        return tmp_path

    return write


def test_without_operators_they_can_be_imported_but_not_used(mmcv):
    lines = run(LITE_USE, mmcv(LITE)).splitlines()
    assert len(lines) == 7
    assert lines[0].startswith('mmcv.ops.DeformConv2d needs the compiled operators of mmcv')
    assert all('mmcv._ext' in line and 'pip install mmcv==2.1.0' in line for line in lines)


def test_real_operators_stay(mmcv):
    out = run('import mmcv.ops\nprint(mmcv.ops.upfirdn2d(3))', mmcv('from mmcv.ops.upfirdn2d import upfirdn2d\n'))
    assert out == 'real 3\n'


def test_an_operator_that_does_not_exist_is_missing_from_real_ones(mmcv):
    code = "import mmcv.ops\nprint(hasattr(mmcv.ops, 'DeformConv2d'))"
    assert run(code, mmcv('from mmcv.ops.upfirdn2d import upfirdn2d\n')) == 'False\n'


def test_without_mmcv_nothing_is_put_in_its_place():
    code = f"import sys\nsys.modules['mmcv'] = None\n{USE}print(any('_Ops' in str(finder) for finder in sys.meta_path))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ('False\n', 0), done.stderr


def test_without_controlnet_aux_its_class_can_be_imported_but_not_used(tmp_path):
    code = """
from controlnet_aux import HEDdetector
for use in (lambda: HEDdetector(), lambda: HEDdetector.from_pretrained('x')):
    try:
        use()
    except ValueError as error:
        print(error)
"""
    lines = run(code, tmp_path).splitlines()
    assert len(lines) == 2 and all('pip install controlnet_aux' in line for line in lines)


def test_another_controlnet_aux_stays(tmp_path):
    (tmp_path / 'controlnet_aux.py').write_text('HEDdetector = "real"\n')
    assert run('from controlnet_aux import HEDdetector\nprint(HEDdetector)', tmp_path) == 'real\n'


def test_without_mmagic_the_command_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(mmagic_tool, 'NEEDED', ('no_such_package',))
    assert cli.main(['mmtrain', 'config.py']) == 1
    assert 'no_such_package is not installed; scripts/setup.sh --mmagic' in capsys.readouterr().err
