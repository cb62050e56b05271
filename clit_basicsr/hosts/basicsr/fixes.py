"""The fixes of BasicSR 1.4.2, put in place once it is imported (see `import_hooks`); its files stay as they are.

Each replaces one name in one of its modules. What is wrong there, and when it shows, stands with the replacement:
``sampler`` (order of training, workers, prefetchers), ``resume``, ``following`` and ``safe_load`` (checkpoints),
``experiment`` (the run's folder), ``validation``, ``models`` (rest); ``plugin`` is how this package enters BasicSR.
"""

from __future__ import annotations

import sys
from typing import Any

from clit_basicsr.hosts.basicsr import experiment, following, models, plugin, resume, safe_load, sampler, validation


def apply() -> None:
    """Apply every fix; a second call does nothing. BasicSR must be imported."""
    # taken from sys.modules: `from .train import *` in basicsr/__init__.py may hide a module behind a function
    train = sys.modules['basicsr.train']
    if getattr(train, 'fixed_by_clit_basicsr', False):
        return
    fix_order_of_training(train)
    fix_checkpoints(train, sys.modules['basicsr.models.base_model'].BaseModel)
    fix_models(sys.modules['basicsr.models.base_model'].BaseModel, sys.modules['basicsr.models.sr_model'].SRModel)
    dist_util: Any = sys.modules['basicsr.utils.dist_util']
    dist_util._init_dist_pytorch = models.init_dist_pytorch(dist_util._init_dist_pytorch)
    for pipeline in (train, sys.modules['basicsr.test']):
        pipeline.get_root_logger = experiment.quiet(pipeline.get_root_logger)  # type: ignore[attr-defined]
        pipeline.make_exp_dirs = experiment.reporting_files(pipeline.make_exp_dirs)  # type: ignore[attr-defined]
        pipeline.parse_options = plugin.completing(pipeline.parse_options)  # type: ignore[attr-defined]
    train.fixed_by_clit_basicsr = True  # type: ignore[attr-defined]
    plugin.register()  # last of all: our files import the host, with its fixes


def fix_order_of_training(train: Any) -> None:
    data: Any = sys.modules['basicsr.data']
    prefetch: Any = sys.modules['basicsr.data.prefetch_dataloader']
    train.build_dataloader = data.build_dataloader = sampler.with_forked_workers(train.build_dataloader)
    train.create_train_val_dataloader = sampler.planned_loaders(train.create_train_val_dataloader, train)
    train.CPUPrefetcher, train.CUDAPrefetcher = sampler.prefetchers(prefetch)
    prefetch.PrefetchGenerator.run = sampler.run_and_hand_on_errors
    prefetch.PrefetchGenerator.__next__ = sampler.next_or_raise
    data.worker_init_fn = sampler.start_worker


def fix_checkpoints(train: Any, base_model: Any) -> None:
    train.copy_opt_file = experiment.reporting_files(experiment.copy_unless_same(train.copy_opt_file))
    train.load_resume_state = resume.load_resume_state
    base_model.save_network = resume.save_network
    base_model.save_training_state = resume.save_training_state
    base_model.load_network = resume.load_network
    base_model.resume_training = following.following(base_model.resume_training)
    safe_load.install()


def fix_models(base_model: Any, sr_model: Any) -> None:
    base_model.get_optimizer = models.get_optimizer
    base_model.model_to_device = models.model_to_device
    base_model.setup_schedulers = models.without_popping(base_model.setup_schedulers)
    sr_model.setup_optimizers = models.without_popping(sr_model.setup_optimizers)
    sys.modules['basicsr.models.sr_model'].calculate_metric = validation.calculate_metric  # type: ignore[attr-defined]
    sr_model.nondist_validation = validation.validation_of_a_set(sr_model.nondist_validation)
    sr_model.dist_validation = validation.dist_validation
