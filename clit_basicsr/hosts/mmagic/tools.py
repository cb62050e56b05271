"""MMagic's own ``tools/train.py`` and ``tools/test.py``, with all their flags, after its imports are made to work."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from clit_basicsr.base.errors import UserError
from clit_basicsr.hosts.mmagic import plugin


def run_tool(name: str, program: str, arguments: Sequence[str], check: Callable[[Any], None]) -> None:
    """Runs a tool of MMagic.

    Args:
        name: 'train' or 'test'.
        program: what the tool calls itself in its help.
        arguments: of its command line.
        check: called with the config, complete with its base files and ``--cfg-options``, before anything is made.

    Raises:
        UserError: the config cannot be read; or what ``check`` raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of packages that MMagic imports
        plugin.register_all()
    tool = load_tool(name)
    from mmengine.config import Config
    from mmengine.runner import Runner

    from clit_basicsr.hosts.mmagic.checkpoints import add_plain_checkpoints

    read, build, parse, merge_options = Config.fromfile, Runner.from_cfg, tool.parse_args, Config.merge_from_dict

    def fromfile(filename: str, *options: Any, **named: Any) -> Any:
        try:
            return read(filename, *options, **named)
        except Exception as error:  # a Python config may raise anything
            text = ' '.join(str(error).split())[:300]
            raise UserError(f'config {filename} cannot be read ({type(error).__name__}: {text})') from error

    def merge(self: Any, options: dict, *rest: Any, **named: Any) -> None:
        try:
            merge_options(self, options, *rest, **named)
        except (KeyError, TypeError, ValueError) as error:
            text = ' '.join(str(error.args[0] if error.args else error).split())[:300]
            raise UserError(f'--cfg-options: {text}') from error

    def parse_args() -> Any:
        try:
            args = parse()
        except ValueError as error:
            raise UserError('--cfg-options takes key=value, such as train_dataloader.batch_size=8') from error
        if getattr(args, 'out', None):
            check_target(args.out)
        return args

    def from_cfg(cfg: Any) -> Any:
        check(cfg)
        check_writable(cfg.work_dir, f'work_dir {cfg.work_dir}')
        join_processes(cfg)
        runner = build(cfg)
        add_plain_checkpoints(runner)  # for MMagic's own models and loops too, which could not be resumed otherwise
        return runner

    with (
        replaced(tool, 'parse_args', parse_args),
        replaced(Config, 'fromfile', fromfile),
        replaced(Config, 'merge_from_dict', merge),
        replaced(Runner, 'from_cfg', from_cfg),
        replaced(sys, 'argv', [program, *arguments]),
    ):
        tool.main()


def check_target(file: str) -> None:
    """Raises UserError for ``--out`` that could not be written, before the test and not after it."""
    if not file.endswith(('.json', '.yaml', '.yml', '.pkl', '.pickle')):
        raise UserError(f'--out {file}: its name must end in .json, .yaml, .yml, .pkl or .pickle')
    if os.path.isdir(file):
        raise UserError(f'--out {file} is a folder; name a file')
    check_writable(os.path.dirname(file) or '.', f'--out {file}')


def check_writable(folder: str, what: str) -> None:
    """Raises UserError for a folder that cannot be made, or not be written to."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'{what} cannot be written to: {error.strerror}') from error


def load_tool(name: str) -> ModuleType:
    """The module of a tool, not as ``__main__``: worker processes that are spawned would execute that file first."""
    import mmagic

    package = Path(mmagic.__file__).parent
    places = [package / '.mim' / 'tools', package.parent / 'tools']  # of the wheel; of a clone
    file = next((folder / f'{name}.py' for folder in places if (folder / f'{name}.py').is_file()), None)
    if file is None:
        raise UserError(f'MMagic in {package} has no tools/{name}.py; install its wheel, or a clone of its repository.')
    spec = importlib.util.spec_from_file_location(f'mmagic_tool_{name}', file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def join_processes(cfg: Any) -> None:
    """What a distributed run needs that the host leaves to the config: gloo where there is no GPU, and a wrapper that
    accepts parameters without gradients, which a cascade's later branches are in some batches.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    if (cfg.get('train_cfg') or {}).get('type') == 'CumulativeTrainLoop':
        cfg.setdefault('find_unused_parameters', True)
    if torch.cuda.is_available():
        return
    if not torch.distributed.is_initialized():
        missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
        if missing:
            raise UserError(
                f'--launcher {cfg.launcher}: {", ".join(missing)} is not set; start with `torchrun --nproc_per_node=2 '
                '-m clit_basicsr mmtrain CONFIG --launcher pytorch`.'
            )
        torch.distributed.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = {
            'type': 'MMDistributedDataParallel',
            'device_ids': None,
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        }


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute is another one within the block."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
