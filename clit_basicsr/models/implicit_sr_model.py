"""Training and validation of networks that answer at any point, on the host's SRModel."""

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from os import path as osp

import cv2
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from tqdm import tqdm

from clit_basicsr.archs.encoders import load_pretrained
from clit_basicsr.archs.implicit import ImplicitNet
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.archs.sizes import parse_tile
from clit_basicsr.base.console import hides_bars
from clit_basicsr.base.errors import UserError
from clit_basicsr.base.files import replacing
from clit_basicsr.base.messages import scale_text
from clit_basicsr.base.precisions import check_precision
from clit_basicsr.base.ranks import for_each_picture, mean_values, on_first_rank
from clit_basicsr.data.images import without_suffix
from clit_basicsr.metrics.protocols import border_width, dataset_protocol
from clit_basicsr.models.clipped_scales import ClippedScales
from clit_basicsr.models.loss_guard import DEFAULT_LIMIT, LossGuard
from clit_basicsr.models.measurement import (
    Figures,
    dataset_scale,
    first_remarks,
    is_float_metric,
    measure,
    picture_names,
)
from clit_basicsr.models.validation_table import Row, ValidationTable


@MODEL_REGISTRY.register()
class ImplicitSRModel(SRModel):
    """The host's SRModel for implicit networks: training on sampled queries, validation at any scale.

    Options in addition to the host's:
        train:
            precision (str): 'fp32', 'tf32' or 'bf16' (autocast), see :func:`clit_basicsr.archs.precision.in_precision`.
                Default: as torch is set.
            nonfinite_limit (int): Iterations in a row with a loss that is NaN or infinite after which the training
                stops, see :class:`clit_basicsr.models.loss_guard.LossGuard`. Default: 3.
            variation_weight (float): Weight of the total variation of Thera's field at t = 0 in the loss. Default: 0.
            grad_clip (float): Largest norm of the gradient of all parameters; a larger one is scaled down. Default:
                none.
        val:
            precision (str): The same for validation and tests, where 'fp16' is possible too.
            self_ensemble (bool | str): Average over the eight flips and transpositions; 'rotations': over the four
                rotations alone, as Thera is measured. Default: False.
            tile (dict): ``{tile_size, tile_pad}`` in LR pixels: the network sees one padded tile at a time. Default:
                none.
        val.metrics may hold the host's metrics (rounded 8-bit images) and ``calculate_psnr_float``,
        ``calculate_ssim_float`` (float images, the papers' protocols; each validation set names its ``protocol``).
    """

    shares_validation = True  # nondist_validation deals the pictures out over the ranks

    @classmethod
    def check_options(cls, opt: dict) -> None:
        """Refuses options that this model cannot use, before anything is created on disk.

        Raises:
            UserError: no loss, or one that needs whole pictures; several GPUs without a launcher; an unknown precision.
        """
        train = opt.get('train') or {}
        check_precision(train.get('precision'), 'train:precision')
        check_precision((opt.get('val') or {}).get('precision'), 'val:precision')
        if train.get('precision') == 'fp16':
            raise UserError('train:precision: fp16 would need loss scaling; use bf16.')
        for key in ('perceptual_opt', 'gan_opt', 'ldl_opt'):
            if train.get(key):
                raise UserError(
                    f'train:{key} needs whole pictures, but {cls.__name__} trains on single pixels drawn from them; '
                    'remove it (pixel_opt is the loss here).'
                )
        if opt.get('is_train') and not train.get('pixel_opt'):
            raise UserError('train:pixel_opt is missing; it is the loss, {type: L1Loss} in the papers.')
        if opt.get('is_train') and not opt.get('dist') and (opt.get('num_gpu') or 0) > 1:
            raise UserError(
                f'{opt["num_gpu"]} GPUs, but no launcher: start with `torchrun --nproc_per_node={opt["num_gpu"]} '
                '-m clit_basicsr train -opt FILE --launcher pytorch`, or set num_gpu: 1.'
            )

    @classmethod
    def check_network(cls, opt: dict, net: nn.Module) -> None:
        """Refuses a network, on whatever device, that this model cannot train or test.

        Raises:
            UserError: the network answers whole pictures only.
        """
        if not isinstance(net, ImplicitNet):
            raise UserError(
                f'network_g:type {opt["network_g"]["type"]} cannot answer at single points, which {cls.__name__} '
                'needs; use LIT or CLIT, for example.'
            )
        try:
            parse_tile((opt.get('val') or {}).get('tile'), 1, net.reach)
        except UserError as error:
            raise UserError(f'val:tile: {error}') from error
        train = opt.get('train') or {}
        if train.get('variation_weight') and 'variation' not in inspect.signature(net.forward).parameters:
            raise UserError(
                f'train:variation_weight: {type(net).__name__} has no field whose variation could be measured; leave '
                'it out (it is an option of Thera).'
            )
        data = (opt.get('datasets') or {}).get('train') or {}
        if opt.get('is_train') and data.get('scale_per_image') and net.cascaded:
            raise UserError(
                f'datasets:train:scale_per_image: the branches of {type(net).__name__} need one scale for a whole '
                'batch; leave it out.'
            )

    def __init__(self, opt: dict) -> None:
        self.check_options(opt)
        self.validated: set[tuple[int, int]] = set()  # data set and iteration
        super().__init__(opt)
        self.check_network(opt, self.get_bare_model(self.net_g))
        if not opt['is_train']:
            self._check_loaded()
        for line in opt.get('warnings', []):
            get_root_logger().warning(line)

    def _check_loaded(self) -> None:
        """Warns where a tested network is not quite what the option file says."""
        net, lines = self.get_bare_model(self.net_g), self.opt.setdefault('warnings', [])
        trained, branches = getattr(net, 'num_trained_branches', 1), getattr(net, 'num_branches', 1)
        if self.opt['path'].get('pretrain_network_g') and trained < branches:
            lines.append(f'{trained} of {branches} branches of the network are trained; the others are not used.')
        asked = (self.opt['network_g'].get('encoder') or {}).get('img_range')
        used = getattr(getattr(net, 'encoder', None), 'input_range', None)
        if asked is not None and used is not None and abs(used.item() - asked) > 1e-6:
            lines.append(f'network_g:encoder:img_range: {asked} is not used: the checkpoint has {used.item():g}.')

    def init_training_settings(self) -> None:
        limit = self.opt['train'].get('nonfinite_limit', DEFAULT_LIMIT)
        self.loss_guard = LossGuard(limit, self.opt['path']['models'], self.opt['dist'])
        self.clipped_scales = ClippedScales()
        self._load_encoder()
        super().init_training_settings()

    def _load_encoder(self) -> None:
        """``path:pretrain_network_encoder``, before the EMA network is copied and before the optimizer is made."""
        path = self.opt['path']
        file = path.get('pretrain_network_encoder')
        if file is None or path.get('pretrain_network_g') is not None:  # a whole network, on resume too, has its own
            return
        network = self.opt['network_g']
        loaded = load_pretrained(self.get_bare_model(self.net_g).encoder, network['encoder'], file)
        # The normalisation that came with the weights is an option of the network from now on.
        network['encoder'] = loaded.options
        get_root_logger().info(loaded.message)

    def feed_data(self, data: dict) -> None:
        """Takes a batch: `lq` (B,3,h,w) and `gt` (B,3,H,W); in training `gt` (B,Q,3), `coord`, `cell`, `scales`, ..."""
        # Without the host's waiting for the step before, which may still be running on a GPU.
        for name in data.keys() & {'lq', 'gt', 'coord', 'cell'}:
            setattr(self, name, data[name].to(self.device, non_blocking=True))
        if 'coord' in data:
            self.scales = data['scales'][0].tolist()  # one plan for the whole batch
            self.files = data['gt_path']
            if remark := self.clipped_scales.add(data['drawn'][0].tolist(), data['scales'][0, :, 0].tolist()):
                get_root_logger().warning(remark)

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        with in_precision(self.opt['train'].get('precision'), self.device):
            weight = self.opt['train'].get('variation_weight') or 0
            queries = (self.lq, self.coord, self.cell, self.scales)
            output, variation = self.net_g(*queries, variation=True) if weight else (self.net_g(*queries), None)
            with torch.autocast(self.device.type, enabled=False):
                self.output = output.float()
                pixel_loss = loss = self.cri_pix(self.output, self.gt)
                self.log_dict, self.iteration = OrderedDict(l_pix=pixel_loss.detach()), current_iter
                if variation is not None:
                    variation = variation.float().mean()
                    loss = pixel_loss + weight * variation
                    self.log_dict['l_variation'] = variation.detach()
                loss.backward()
        if not self.loss_guard.accepts(loss, current_iter, self.files):
            get_root_logger().warning(f'Iteration {current_iter:,}: the loss is not finite; the step is skipped.')
            return
        if self.opt['train'].get('grad_clip'):
            nn.utils.clip_grad_norm_(self.net_g.parameters(), self.opt['train']['grad_clip'])
        self.optimizer_g.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def get_current_log(self) -> OrderedDict:
        """The losses as numbers, averaged over the ranks, all of which must call. Only here a GPU is waited for."""
        losses = self.reduce_loss_dict(self.log_dict)
        if self.device.type != 'cpu':
            self.loss_guard.check_logged(losses['l_pix'], self.iteration, self.files)
        return losses

    def test(self) -> None:
        """Enlarges ``self.lq`` at the validation set's scale; outside of a validation, at the network's own."""
        # The bare network: a wrapped one would wait for ranks that take no part in validation.
        net = self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)
        net.eval()
        scale = getattr(self, 'val_scale', (net.default_scale,) * 2)
        val = self.opt.get('val') or {}
        with in_precision(val.get('precision'), self.device):
            if val.get('self_ensemble'):
                rotations = val['self_ensemble'] == 'rotations'
                self.output = self_ensemble(net, self.lq, scale, val.get('tile'), rotations)
            else:
                self.output = net.upscale(self.lq, scale=scale, tile=val.get('tile'))
        self.output = self.output.float()
        self.net_g.train(self.is_train)

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img: bool) -> None:
        """The host's validation, with float metrics by each set's own protocol and pictures saved per set.

        In a distributed run every rank must call: the pictures are dealt out, and every rank has the same means.
        """
        dataset = dataloader.dataset
        name, val = dataset.opt['name'], self.opt.get('val') or {}
        if self.is_train and (id(dataset), current_iter) in self.validated:
            return  # the host validates once more at the end of a training, even if it has just done so
        self.validated.add((id(dataset), current_iter))
        metrics = val.get('metrics') or {}
        self.val_scale = dataset_scale(dataset)
        on_first_rank(lambda: None)  # which may still be moving the folder of an earlier run aside
        if metrics:
            self._continue_best_results(name)
        names = picture_names(dataset)
        bar = val.get('pbar', False) and self.opt['rank'] == 0
        with tqdm(total=len(dataloader), unit='image', desc=name, disable=not bar or hides_bars()) as progress:
            figures = for_each_picture(
                dataloader,
                lambda data: self._validate_picture(data, dataset, names, current_iter if save_img else None),
                progress.update,
            )
        self.metric_results = mean_values([one.values for one in figures])
        if metrics:
            for remark in first_remarks(figures):
                get_root_logger().warning(f'{name}: {remark}.')
                self.opt.setdefault('warnings', []).append(f'{name}: {remark}.')  # for the summary of a test
            for metric, value in self.metric_results.items():
                self._update_best_metric_result(name, metric, value, current_iter)
            on_first_rank(lambda: self._report(dataset, current_iter, tb_logger))

    def _validate_picture(self, data: dict, dataset, names: dict[str, str], save_as) -> Figures:
        """Enlarges a picture and measures it.

        Args:
            names: file name of each picture, see :func:`picture_names`.
            save_as: the iteration, if the result is saved.
        """
        path = data['lq_path'][0]
        self.feed_data(data)
        self.test()
        if not self.is_train and not self.output.isfinite().all():
            raise UserError(
                f'{path}: the result of the network is not finite (NaN or infinite), so it is not measured; check '
                'the weights (path:pretrain_network_g) and val:precision.'
            )
        if save_as is not None:
            name = names.get(path) or osp.basename(without_suffix(path))
            self._save_picture(dataset.opt['name'], name, save_as)
        metrics = (self.opt.get('val') or {}).get('metrics') or {}
        figures = measure(metrics, dataset, self.output, getattr(self, 'gt', None), path)
        # A whole picture each: let go of them before the next one is enlarged.
        for attribute in ('gt', 'lq', 'output'):
            self.__dict__.pop(attribute, None)
        return figures

    def _report(self, dataset, current_iter, tb_logger) -> None:
        self._log_validation_metric_values(current_iter, dataset.opt['name'], tb_logger)
        with going_on_without(self.is_train):
            self._add_to_table(dataset, current_iter)

    def _save_picture(self, dataset_name: str, image_name: str, current_iter) -> None:
        suffix = current_iter if self.is_train else (self.opt['val'].get('suffix') or self.opt['name'])
        folder = osp.join(self.opt['path']['visualization'], dataset_name)
        target = osp.join(folder, f'{image_name}_{suffix}.png')
        _, content = cv2.imencode('.png', tensor2img([self.output]))
        with going_on_without(self.is_train), replacing(target) as unfinished, open(unfinished, 'wb') as file:
            file.write(content.tobytes())

    @property
    def table(self) -> ValidationTable:
        """validation.csv in the run's folder."""
        return ValidationTable(osp.join(self.opt['path']['log'], 'validation.csv'))

    def resume_training(self, resume_state: dict) -> None:
        super().resume_training(resume_state)
        if self.opt['rank'] == 0:
            self.table.drop_after(resume_state['iter'])

    def _continue_best_results(self, dataset_name: str) -> None:
        """The host's records of the best figures; those of a resumed run begin with what rank 0's table holds."""
        known = dataset_name in getattr(self, 'best_metric_results', {})
        self._initialize_best_metric_results(dataset_name)
        if self.is_train and not known:
            self.best_metric_results[dataset_name] = on_first_rank(lambda: self._records(dataset_name))

    def _records(self, dataset_name: str) -> dict:
        records = self.best_metric_results[dataset_name]
        self.table.replay(
            dataset_name,
            lambda metric, value, iteration: (
                metric in records and self._update_best_metric_result(dataset_name, metric, value, iteration)
            ),
        )
        return records

    def _add_to_table(self, dataset, current_iter) -> None:
        val = self.opt.get('val') or {}
        about = {
            'iteration': str(current_iter),
            'dataset': dataset.opt['name'],
            'scale': scale_text(self.val_scale),
            'lq': 'given' if dataset.opt.get('dataroot_lq') else getattr(dataset, 'downsampling', ''),
            'tile': '{tile_size}+{tile_pad}'.format(**{'tile_pad': 32, **val['tile']}) if val.get('tile') else 'whole',
        }
        rows = []
        for metric, value in self.metric_results.items():
            options = val['metrics'][metric]
            ours = is_float_metric(options)
            protocol = dataset_protocol(dataset) if ours else ''
            border = options.get('crop_border', '')
            if ours:
                border = border_width(protocol, self.val_scale) if options['type'] == 'calculate_psnr_float' else 0
            own = {'metric': metric, 'value': f'{value:.6f}', 'protocol': protocol, 'border': str(border)}
            rows.append(Row(**about, **own))
        self.table.add(rows)


@contextmanager
def going_on_without(training: bool) -> Iterator[None]:
    """In a training, a file of a validation that cannot be written is an error in the log, and the training goes on."""
    try:
        yield
    except UserError as error:
        if not training:
            raise
        get_root_logger().error(str(error))


def self_ensemble(
    net: ImplicitNet, lq: Tensor, scale: tuple[float, float], tile: dict | None = None, rotations: bool = False
) -> Tensor:
    """The mean of a picture's enlargements under the eight flips and transpositions (Timofte et al., 2016).

    Args:
        lq: (B, 3, h, w).
        scale: (y, x).
        rotations: only those four that are rotations.

    Returns:
        Tensor: (B, 3, H, W).
    """
    total, count = lq.new_zeros(()), 0
    for transpose in (False, True):
        image, factors = (lq.transpose(2, 3), scale[::-1]) if transpose else (lq, scale)
        for axes in ((), (2,), (3,), (2, 3)):
            if rotations and len(axes) % 2 != transpose:
                continue  # a reflection
            out = net.upscale(image.flip(axes), scale=factors, tile=tile).flip(axes)
            total, count = total + (out.transpose(2, 3) if transpose else out), count + 1
    return total / count
