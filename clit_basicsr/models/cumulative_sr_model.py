"""Cumulative training: one run through all stages, each with one branch more than the one before."""

import copy

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from clit_basicsr.base.errors import UserError
from clit_basicsr.data.schedule import Stage, TrainingPlan
from clit_basicsr.models.implicit_sr_model import ImplicitSRModel


@MODEL_REGISTRY.register()
class CumulativeSRModel(ImplicitSRModel):
    """Training in stages (section "Cumulative training strategy" of the CLIT paper), for one decoder or a cascade.

    Stage N trains branches 1 ... N. At its first iteration branch N is initialised and the optimizer is reset, as is
    the learning rate: ``lr``, multiplied by ``gamma`` after each of ``milestones``, both counted from the stage's first
    iteration, or lowered by a cosine.

    Options in addition to those of :class:`ImplicitSRModel`:
        train:
            stages (list[dict]): See :class:`clit_basicsr.data.schedule.Stage`.
            start_stage (int): First stage to train, from 1, with ``path:pretrain_network_g`` a checkpoint of the stage
                before. Default: 1.
            optim_g (dict): As in the host, without ``lr``.
    """

    @classmethod
    def check_options(cls, opt: dict) -> None:
        super().check_options(opt)
        if not opt.get('is_train'):
            return
        train = opt['train']
        if 'stages' not in train:
            raise UserError(
                f'train:stages is missing; {cls.__name__} trains in stages (ImplicitSRModel trains without them).'
            )
        plan = TrainingPlan.parse(train)
        if plan.start_stage > 1 and not opt['path'].get('pretrain_network_g') and not opt.get('auto_resume'):
            raise UserError(
                'train:start_stage above 1 needs path:pretrain_network_g, the checkpoint of the stage before.'
            )

    @classmethod
    def check_network(cls, opt: dict, net: nn.Module) -> None:
        super().check_network(opt, net)
        branches = getattr(net, 'num_branches', 1)
        if opt.get('is_train') and (asked := TrainingPlan.parse(opt['train']).branches) > branches:
            raise UserError(f'train:stages ask for {asked} branches, but network_g has {branches}.')
        if opt.get('is_train') and asked < branches:
            never = f'branch {branches} is' if asked + 1 == branches else f'branches {asked + 1} to {branches} are'
            line = f'train:stages have at most {asked} of the {branches} branches of network_g: {never} never trained.'
            if line not in opt.setdefault('warnings', []):
                opt['warnings'].append(line)

    def __init__(self, opt: dict) -> None:
        self.check_options(opt)
        if opt['is_train']:
            self.plan = TrainingPlan.parse(opt['train'])
            self.schedule = self.plan.schedule
            self.stage_index = -1  # before the first
            # In an early stage, and in a batch of few branches, the other branches get no gradient.
            opt['find_unused_parameters'] = True
        super().__init__(opt)

    @property
    def stage(self) -> Stage:
        return self.schedule.stages[max(self.stage_index, 0)]

    def setup_optimizers(self) -> None:
        # The host takes the options apart; each stage needs them whole.
        options = copy.deepcopy(self.opt['train']['optim_g'])
        self.opt['train']['optim_g']['lr'] = self.stage.lr
        self.optimizers: list = []
        super().setup_optimizers()
        self.opt['train']['optim_g'] = options

    def setup_schedulers(self) -> None:
        """None: the learning rate is a function of the iteration alone, so a resume has nothing to restore."""
        self.schedulers: list = []

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Called by the host before each iteration: enters the next stage when it begins, sets the learning rate."""
        index, first = self.schedule.stage_of(current_iter - 1)
        if index != self.stage_index:
            self._enter_stage(index, first)
        lr = self.stage.learning_rate(current_iter - first)
        self._set_lr([[lr] * len(optimizer.param_groups) for optimizer in self.optimizers])

    def resume_training(self, resume_state: dict) -> None:
        """Returns into the stage that the state was saved in; its optimizer is the one that the state restores."""
        self.stage_index, _ = self.schedule.stage_of(resume_state['iter'] - 1)
        self._set_trained_branches(self.stage.branches)
        super().resume_training(resume_state)
        get_root_logger().info(f'Resumed in {self._describe_stage()}.')

    def _enter_stage(self, index: int, first: int) -> None:
        self.stage_index = index
        if index > 0 or self.plan.start_stage > 1:
            self._initialise_branches(self.plan.branches_before(index), self.stage.branches)
        self._set_trained_branches(self.stage.branches)
        self.clipped_scales.restart()
        self.setup_optimizers()
        logger = get_root_logger()
        logger.info(f'Iteration {first + 1:,}: {self._describe_stage()}; optimizer and learning rate are reset.')

    def _describe_stage(self) -> str:
        stage, number, total = self.stage, self.stage_index + self.plan.start_stage, len(self.plan.stages)
        branches = 'branch 1' if stage.branches == 1 else f'branches 1 to {stage.branches}'
        return f'stage {number} of {total} ({branches}, {stage.iters:,} iterations, learning rate {stage.lr:g})'

    def _networks(self) -> list:
        nets = [self.get_bare_model(self.net_g)]
        return [*nets, self.net_g_ema] if hasattr(self, 'net_g_ema') else nets

    def _initialise_branches(self, first: int, stop: int) -> None:
        """Fresh weights for branches first ... stop - 1, the same on every rank, after a resume, and in the EMA
        network.
        """
        if stop <= first:
            return
        for net in self._networks():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.opt['manual_seed'] + stop)
                for branch in net.branches[first:stop]:
                    for module in branch.modules():
                        if hasattr(module, 'reset_parameters'):
                            module.reset_parameters()

    def _set_trained_branches(self, count: int) -> None:
        for net in self._networks():
            if hasattr(net, 'trained_branches'):
                net.trained_branches.fill_(count)
