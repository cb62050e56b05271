"""Thera: every LR pixel holds a field of heat, which has the Gaussian blur of any HR pixel in closed form."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clit_basicsr.archs.encoders.trunk import DIV2K_MEAN
from clit_basicsr.archs.features import Features, Prepared
from clit_basicsr.archs.implicit import ImplicitNet, expand_cell, in_pieces
from clit_basicsr.archs.precision import at_least_single
from clit_basicsr.archs.thera_field import Field, fill_picture
from clit_basicsr.archs.thera_tails import build_tail
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops.geometry.coords import Frame, Piece, numbers
from clit_basicsr.ops.geometry.sampling import read_pixels

# Components of the field by variant (J).
COMPONENTS = {'air': 32, 'plus': 512, 'pro': 512}
# Largest frequency of the published initialisation, radians per LR pixel.
FAST = 16 * math.pi
# What an untrained network begins with.
INITS = ('nearest', 'published')
# Largest frequency of ``init: nearest``, the finest that an image at x4 holds.
SLOW = 4 * math.pi
# Queries whose 4 J numbers are held at a time in training; they are made again on the way back.
TRAINING_QUERIES = 4096
# Makes a query on the border of two LR pixels go to the higher one in spite of the rounding of fp32 coordinates.
BORDER = 2.0**-13


@ARCH_REGISTRY.register()
class Thera(ImplicitNet):
    """Neural heat fields: aliasing-free at every scale, evaluated by tables of rows and columns.

    Paper: Thera: Aliasing-Free Arbitrary-Scale Super-Resolution with Neural Heat Fields (arXiv 2311.17643), equations
    (1)-(5); where it is silent or the authors' code differs, the code decides.
    Ref git repo: https://github.com/prs-eth/thera

    The diffusion time is (LR pixels per HR pixel)^2 along each axis; a ``cell`` of 0 asks for the unfiltered signal.

    Args:
        encoder (dict): ``type`` and options of an encoder, e.g. ``{type: EDSR, num_feat: 64, num_block: 16}``.
            ``img_range: 1.99996, rgb_mean: [0.4488, 0.4371, 0.4040]`` is the published normalisation.
        variant (str): 'air': the field alone; 'plus': ConvNeXt blocks before it; 'pro': the body of a SwinIR. Default:
            'air'.
        num_components (int | None): Components J of a field; None: 32 (air) or 512. Default: None.
        tail (dict | None): Other sizes of the tail: ``widths`` (plus); ``embed_dim``, ``depths``, ``num_heads``,
            ``drop_path_rate`` (pro). Default: None.
        init (str): What training begins with, if it begins without weights. 'nearest', our own: the nearest LR
            pixel, and frequencies that an image at x4 can hold; 'published': the authors', whose pictures stay too
            bright by the mean for many iterations. Default: 'nearest'.
        upscale (float): The scale at which a plain ``net(lq)`` answers. Default: 4.
    """

    # Of two pixels at the same distance the higher one answers, the tiles are cut behind either of them.
    reach = 1
    needs_double = True

    def __init__(
        self,
        encoder: dict,
        variant: str = 'air',
        num_components: int | None = None,
        tail: dict | None = None,
        init: str = 'nearest',
        upscale: float = 4,
    ) -> None:
        super().__init__(encoder, upscale)
        self.tail = build_tail(variant, self.encoder.out_channels, tail)
        count = COMPONENTS[variant] if num_components is None else num_components
        if count < 1:
            raise UserError(f'num_components must be at least 1; got {count}.')
        if init not in INITS:
            raise UserError(f'init must be one of {", ".join(INITS)}; got {init}.')
        # Amplitudes, component slow and colour fast, then phases.
        self.hyper = nn.Conv2d(self.tail.out_channels, 4 * count, 1)
        self.components = nn.Parameter(_in_disc(count))  # (2, J): radians per LR pixel in y and in x
        self.kappa = nn.Parameter(torch.tensor(math.sqrt(math.log(4)) / (2 * math.pi**2)))  # diffusivity
        for layer in (*self.tail.modules(), self.hyper):
            _initialize(layer)
        if init == 'nearest':
            self._begin_at_nearest()

    @torch.no_grad()
    def _begin_at_nearest(self) -> None:
        """Our own initialisation: the first component is the constant -2 m, the others are slow and have no amplitude.

        The image is 0.5 f + m + the LR pixel. As published, f begins around 0, so that the image is m too bright, and
        no component can make up for it: none is slow, so that each has a mean near 0 over an LR pixel, whatever its
        amplitude. It takes many iterations until one of them has become the constant -2 m.
        """
        count = self.components.shape[1]
        weight, bias = self.hyper.weight, cast(Tensor, self.hyper.bias)
        self.components.mul_(SLOW / FAST)
        self.components[:, 0] = 0
        weight[: 3 * count] = weight[3 * count] = 0
        bias[:3], bias[3 * count] = -2 * bias.new_tensor(DIV2K_MEAN), math.pi / 2

    @property
    def feature_channels(self) -> int:
        return self.tail.out_channels

    @property
    def context(self) -> int:
        return self.tail.reach

    @property
    def alignment(self) -> int:
        return math.lcm(super().alignment, self.tail.alignment)

    def extract(self, lq: Tensor) -> Tensor:
        return self.tail(super().extract(lq))

    def forward(
        self,
        lq: Tensor,
        coord: Tensor | None = None,
        cell: Tensor | None = None,
        scales=None,
        variation: bool = False,
    ) -> Any:
        """See :meth:`ImplicitNet.forward`; with ``variation`` also the total variation at t = 0, a number (B,).

        It is the mean over queries, colours and axes of the absolute slope of the field, in units of the field per LR
        pixel (section 3.4 of the paper).
        """
        if not variation or coord is None or cell is None:
            return super().forward(lq, coord, cell, scales)
        prepared, coord, cell = self._in_frame(self.encode(lq), coord, cell, None)
        out, slope = self._values(prepared, coord, cell, slopes=True)
        return self.finish(out, prepared.feat, coord), slope.abs().mean(dim=(1, 2, 3))

    def prepare_maps(self, feat: Features, scales) -> Tensor | None:
        """(B, 4 J, h, w): 3 J amplitudes and J phases of every LR pixel; none in training, which asks for about one
        query per LR pixel, and where they would take the most memory.
        """
        if torch.is_grad_enabled():
            return None
        return self._hyper(feat.z, F.conv2d, self.hyper.weight)

    def decode(self, prepared: Prepared, coord: Tensor, cell: Tensor) -> Tensor:
        return in_pieces(lambda *part: self._values(prepared, *part)[0], coord, cell, prepared.feat)

    def finish(self, out: Tensor, feat: Features, coord: Tensor) -> Tensor:
        pixel, _ = locate(coord, feat.frame)
        return 0.5 * out + numbers(DIV2K_MEAN, out) + _read(feat.lq, feat.frame, pixel)

    def _values(
        self, prepared: Prepared, coord: Tensor, cell: Tensor, slopes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The field (B, Q, 3) at the queries and, if asked for, its slopes (B, Q, 3, 2) at t = 0, y first.

        With gradients some queries at a time, whose numbers are made again on the way back.
        """
        time = (expand_cell(cell, coord) * numbers(prepared.feat.frame.size, cell) / 2) ** 2
        if not torch.is_grad_enabled():
            return self._part(prepared, coord, time, slopes)
        step = max(1, TRAINING_QUERIES // len(coord))
        parts = [
            checkpoint(self._part, prepared, *part, slopes, use_reentrant=False)
            for part in zip(coord.split(step, dim=1), time.split(step, dim=1), strict=True)
        ]
        out, slope = zip(*parts, strict=True)
        return torch.cat(out, dim=1), torch.cat(slope, dim=1) if slopes else None

    def _part(self, prepared: Prepared, coord: Tensor, time: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
        """The definition: f_c = sum_j K[j, c] exp(-kappa |omega_j|^2 t) sin(omega_j . delta + b_j), equation (4).

        Args:
            time: (B, Q, 2), t along y and along x.
        """
        feat = prepared.feat
        pixel, delta = locate(coord, feat.frame)
        if prepared.maps is not None:
            values = _read(prepared.maps, feat.frame, pixel)
        else:
            values = self._hyper(_read(feat.z, feat.frame, pixel), F.linear, self.hyper.weight.flatten(1))
        count = self.components.shape[1]
        amplitude, phase = values[..., : 3 * count].unflatten(-1, (count, 3)), values[..., 3 * count :]
        omega_y, omega_x = self.components
        angle = delta[..., :1] * omega_y + delta[..., 1:] * omega_x + phase  # (B, Q, J)
        decay = -self.kappa * (time[..., :1] * omega_y.square() + time[..., 1:] * omega_x.square())
        out = ((decay.exp() * angle.sin()).unsqueeze(-1) * amplitude).sum(dim=-2)
        if not slopes:
            return out, None
        slope = torch.einsum('aj,bqj,bqjc->bqca', self.components, angle.cos(), amplitude)
        return out, slope

    def _hyper(self, z: Tensor, layer: Callable[..., Tensor], weight: Tensor) -> Tensor:
        """The last layer as F.conv2d or F.linear: phases are angles, which need single precision."""
        with torch.autocast(z.device.type, enabled=False):
            return layer(*(at_least_single(t) for t in (z, weight, cast(Tensor, self.hyper.bias))))

    def _fill(self, out: Tensor, feat: Features, piece: Piece, scales) -> None:
        weights = self.hyper.weight.flatten(1), cast(Tensor, self.hyper.bias), self.components, self.kappa
        weight, bias, components, kappa = map(at_least_single, weights)
        field = Field(weight, bias, components, kappa, DIV2K_MEAN)
        with torch.autocast(out.device.type, enabled=False):
            for one, own in zip(out, feat.images(), strict=True):
                fill_picture(one, field, own, piece)


def locate(coord: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """The LR pixel that answers each query, and the query's place in it.

    A query on the border of two pixels goes to the higher one. A query outside the image keeps the border pixel.

    Args:
        coord: (B, Q, 2), (y, x) in [-1, 1].

    Returns:
        Row and column (B, Q, 2) in the grid of the frame; (B, Q, 2), distance from the pixel's centre in LR pixels.
    """
    size = torch.tensor(frame.size, dtype=torch.float64).to(coord.device, non_blocking=True)
    place = (coord.double() + 1) * (size / 2)
    pixel = torch.minimum((place + BORDER).floor().clamp(min=0), size - 1)
    return pixel.long(), (place - pixel - 0.5).to(coord.dtype)


def _read(feat: Tensor, frame: Frame, pixel: Tensor) -> Tensor:
    """A window of a map (B, C, h, w) at pixels (B, Q, 2) of its frame: (B, Q, C)."""
    return read_pixels(feat, pixel[..., 0] - frame.origin[0], pixel[..., 1] - frame.origin[1])


def _in_disc(count: int) -> Tensor:
    """Frequencies (2, count), uniform in a disc."""
    radius, angle = FAST * torch.rand(count).sqrt(), 2 * math.pi * torch.rand(count)
    return torch.stack((radius * angle.sin(), radius * angle.cos()))


def _initialize(layer: nn.Module) -> None:
    """Truncated normal weights of variance 1 / fan_in and no bias, as the authors' framework does by default."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        deviation = 1 / math.sqrt(layer.weight[0].numel()) / 0.87962566103423978  # of the normal that is cut at two
        nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
