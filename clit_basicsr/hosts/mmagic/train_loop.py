"""Cumulative training under mmengine's Runner: the stages, learning rates and batches of ``CumulativeSRModel``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mmagic.registry import DATASETS, LOOPS, MODELS
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clit_basicsr.base.errors import UserError
from clit_basicsr.base.stopping import outlive_signals
from clit_basicsr.data.schedule import Stage, TrainingPlan
from clit_basicsr.hosts.basicsr.following import follow_options, own_options
from clit_basicsr.hosts.basicsr.sampler import end_workers, fork_workers
from clit_basicsr.hosts.mmagic.checkpoints import add_plain_checkpoints, bare_model
from clit_basicsr.hosts.mmagic.implicit_sr import ImplicitSR
from clit_basicsr.hosts.mmagic.resume import check_same_training, in_names_of_mmagic, training_options
from clit_basicsr.hosts.mmagic.stopping import OrderlyStop, lock
from clit_basicsr.models.cumulative_sr_model import CumulativeSRModel
from clit_basicsr.models.loss_guard import DEFAULT_LIMIT, LossGuard
from clit_basicsr.models.stage_entry import begin_stage, set_up_stage

LOOK_EVERY = 100  # iterations on a GPU between two looks at the loss, which wait for it


class NotStarted:
    """Stands for a data loader until the loop begins: mmengine would start its workers before a resume is known."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset

    def __iter__(self):
        return iter(())


def _start_worker(start: Callable[[int], None] | None, worker: int) -> None:
    if start is not None:
        start(worker)
    outlive_signals()


@LOOPS.register_module()
class CumulativeTrainLoop(IterBasedTrainLoop):
    """Training in stages, for one decoder or a cascade; one stage is ordinary training.

    It orders the images, resets optimizer and learning rate at the beginning of each stage, and initialises the stage's
    new branches, also in the averages of EMAHook. The random numbers are those of ``randomness=dict(seed=...)``.

    Args:
        runner: mmengine's.
        dataloader (dict): With a data set of batch numbers (RandomScaleDataset) and without ``sampler``.
        stages (list[dict]): See :class:`clit_basicsr.data.schedule.Stage`; a stage's ``pixel_opt`` is a loss of MMagic.
        start_stage (int): First stage to train, from 1, with ``load_from`` a checkpoint of the stage before.
            Default: 1.
        val_begin, val_interval, dynamic_intervals: As in IterBasedTrainLoop.
        nonfinite_limit (int): Iterations in a row with a loss that is NaN or infinite after which the training ends,
            see :class:`clit_basicsr.models.loss_guard.LossGuard`. Default: 3.

    Raises:
        UserError: stages, data or model do not fit each other, with the reason.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: dict,
        stages: list[dict],
        start_stage: int = 1,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
        nonfinite_limit: int = DEFAULT_LIMIT,
    ) -> None:
        self.plan = TrainingPlan.parse({'stages': stages, 'start_stage': start_stage})
        self.schedule = self.plan.schedule
        self.given = {'dataloader': dict(dataloader), 'train': {'stages': list(stages), 'start_stage': start_stage}}
        self.own_options: list[dict] = []  # of the optimizer, before a resume brings those of the checkpoint
        self.stage_index = -1  # before the first
        loader = self._build_loader(runner, dataloader, stages)
        super().__init__(runner, NotStarted(loader), self.plan.total_iter, val_begin, val_interval, dynamic_intervals)
        self.dataloader = loader
        self.guard = LossGuard(nonfinite_limit, runner.work_dir, is_distributed())
        self.files: list[str] = []  # of the batch
        add_plain_checkpoints(runner)

    def _build_loader(self, runner: Any, dataloader: dict, stages: list[dict]) -> DataLoader:
        options = copy.deepcopy(dict(dataloader))
        for key in ('sampler', 'batch_sampler'):
            if options.get(key) is not None:
                raise UserError(f'train_dataloader:{key}: CumulativeTrainLoop orders the images itself; leave it out.')
        options['sampler'] = {
            'type': 'PlannedBatches',
            'batch_size': options['batch_size'],
            'total_iter': self.plan.total_iter,
        }
        filled_in = {'stages': list(stages), 'start_stage': self.plan.start_stage, 'manual_seed': runner.seed}
        kind = options['dataset']['type']
        dataset = DATASETS.get(kind) if isinstance(kind, str) else kind
        if not getattr(dataset, 'takes_batch_numbers', False):
            raise UserError(
                f'train_dataloader:dataset:type: CumulativeTrainLoop trains on pixels drawn from images, which {kind} '
                'does not give; take RandomScaleDataset.'
            )
        options['dataset'] = {**options['dataset'], **filled_in}
        loader = runner.build_dataloader(options, seed=runner.seed)
        fork_workers(loader)
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        return loader

    @property
    def stage(self) -> Stage:
        return self.schedule.stages[max(self.stage_index, 0)]

    @property
    def model(self) -> ImplicitSR:
        """The bare model."""
        return bare_model(self.runner)

    def run(self) -> nn.Module:
        """Trains from the iteration that was resumed, or from the first."""
        self._check()
        if is_main_process():
            lock(self.runner.work_dir)
        self._guard_updates()
        self.loss = self.model.pixel_loss
        self.trainable = {name for name, value in self.model.generator.named_parameters() if value.requires_grad}
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter:
            self._return_into_stage()
        dataset: Any = self.dataloader.dataset
        dataset.seed = self.runner.seed  # a resume may have brought that of its checkpoint
        sampler: Any = self.dataloader.sampler
        sampler.start(self._iter)
        for loader in self._validation_loaders():
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        batches = iter(self.dataloader)
        try:
            self._iterate(batches)
        finally:
            end_workers(batches)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validation_loaders(self) -> list[DataLoader]:
        loop: Any = self.runner.val_loop
        return list(getattr(loop, 'dataloaders', None) or ([] if loop is None else [loop.dataloader]))

    def _iterate(self, batches: Iterator[dict]) -> None:
        with OrderlyStop(self.runner) as stop:
            while self._iter < self._max_iters and not self.stop_training:
                self.runner.model.train()
                self.run_iter(next(batches))
                stop.after_iteration(self._iter)
                self._decide_current_val_interval()
                if self.runner.val_loop is not None and self._validates_now():
                    with stop.validation():
                        self.runner.val_loop.run()

    def _validates_now(self) -> bool:
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return due and self._iter >= self.val_begin

    def run_iter(self, data_batch: dict) -> None:
        """An iteration; enters the next stage where it begins, and sets the learning rate, before any hook logs it."""
        index, first = self.schedule.stage_of(self._iter)
        if index != self.stage_index:
            self._enter_stage(index, first)
        lr = self.stage.learning_rate(self._iter + 1 - first)
        for group in self.runner.optim_wrapper.param_groups:
            group['lr'] = lr
        self.files = [sample.gt_path for sample in data_batch['data_samples']]
        super().run_iter(data_batch)

    def _check(self) -> None:
        if not isinstance(self.model, ImplicitSR):
            raise UserError(f'model:type: CumulativeTrainLoop trains ImplicitSR, not {type(self.model).__name__}.')
        if self.runner.param_schedulers:
            raise UserError('param_scheduler: each of train_cfg:stages has its own learning rate; leave it out.')
        if getattr(self.runner.optim_wrapper, '_accumulative_counts', 1) != 1:
            raise UserError('optim_wrapper:accumulative_counts must be 1: stages count iterations, not steps.')
        if self.plan.start_stage > 1 and not self._iter and not self.runner._load_from:
            raise UserError('train_cfg:start_stage above 1 needs load_from, the checkpoint of the stage before.')
        warnings: list[str] = []
        train = {'stages': [vars(stage) for stage in self.plan.stages], 'start_stage': self.plan.start_stage}
        train |= self.model.train_options
        data = {'train': self.given['dataloader'].get('dataset')}
        options = {'is_train': True, 'network_g': self.model.network_g, 'train': train, 'datasets': data}
        options |= {'val': {'tile': self.model.test_options.get('tile')}, 'warnings': warnings}
        try:
            CumulativeSRModel.check_network(options, self.model.generator)
        except UserError as error:
            raise UserError(in_names_of_mmagic(str(error))) from error
        for line in warnings:
            self.runner.logger.warning(in_names_of_mmagic(line))
        if self._iter > self._max_iters:
            raise UserError(f'the checkpoint is of iteration {self._iter}, beyond the last one, {self._max_iters}.')

    def training_options(self) -> dict:
        """What a checkpoint keeps of them."""
        optimizer = self.own_options or own_options(self.runner.optim_wrapper.optimizer)
        averages = [hook.ema_cfg for hook in self.runner.hooks if isinstance(hook, EMAHook)]
        own = {'pixel_opt': self.model.loss_options, **self.model.train_options, 'ema': averages}
        train = {**self.given['train'], **own}
        return training_options(self.given['dataloader'], train, self.model.network_g, optimizer)

    def check_resume(self, checkpoint: dict) -> None:
        """Raises UserError if the training to be resumed is another one; what may change is logged."""
        self.own_options = own_options(self.runner.optim_wrapper.optimizer)
        for line in check_same_training(checkpoint, self.training_options()):
            self.runner.logger.warning(f'Changed since the checkpoint was saved: {line}.')

    def _return_into_stage(self) -> None:
        """Into the stage that the checkpoint was saved in; optimizer and weights are restored."""
        self._set_up_stage(self.schedule.stage_of(self._iter - 1)[0])
        follow_options(self.runner.optim_wrapper.optimizer, self.own_options)
        self.runner.logger.info(f'Resumed in {self.plan.describe(self.stage_index)}.')

    def _enter_stage(self, index: int, first: int) -> None:
        self._set_up_stage(index)
        begin_stage(self._networks(), self.plan, index, self.runner.seed)
        self.model.clipped_scales.restart()
        self.runner.optim_wrapper.optimizer.state.clear()
        self.runner.logger.info(
            f'Iteration {first + 1:,}: {self.plan.describe(index)}; optimizer and learning rate are reset.'
        )

    def _set_up_stage(self, index: int) -> None:
        self.stage_index = index
        set_up_stage(self._networks(), self.plan, index, self.trainable)
        loss = self.stage.pixel_opt
        self.model.pixel_loss = MODELS.build(loss) if loss else self.loss

    def _networks(self) -> list[nn.Module]:
        """The network, and its averages."""
        averages = [hook.ema_model.module for hook in self.runner.hooks if hasattr(hook, 'ema_model')]
        return [model.generator for model in (self.model, *averages)]

    def _guard_updates(self) -> None:
        """Leaves out the steps of losses that are not finite."""
        update: Callable = self.runner.optim_wrapper.update_params

        def update_params(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            iteration = self._iter + 1
            if not self.guard.accepts(loss, iteration, self.files):
                self.runner.logger.warning(f'Iteration {iteration:,}: the loss is not finite; the step is skipped.')
                return
            update(loss, *args, **kwargs)
            if loss.device.type != 'cpu' and iteration % LOOK_EVERY == 0:
                self.guard.check_logged(loss.item(), iteration, self.files)

        self.runner.optim_wrapper.update_params = update_params
