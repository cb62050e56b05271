"""One branch of LIT, and what it is made of; CLIT stacks several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from clit_basicsr.archs.implicit import MAX_QUERIES, relative_cell
from clit_basicsr.archs.mlp import build_mlp
from clit_basicsr.archs.precision import SingleFrequencies
from clit_basicsr.base.errors import UserError
from clit_basicsr.ops import PositionalBias, backends, local_attention
from clit_basicsr.ops.attention.dense import dense_first_layer
from clit_basicsr.ops.attention.reference import Head, Linear, attention_weights
from clit_basicsr.ops.attention.rows import MapRows
from clit_basicsr.ops.attention.windows import TapProducts, window_attention
from clit_basicsr.ops.backends.contract import Call
from clit_basicsr.ops.decoder import compiled
from clit_basicsr.ops.geometry.coords import Frame, Piece, numbers
from clit_basicsr.ops.upsampled import Conv, Upsampling, upsample, upsampled_conv

# Queries per thread that pass through the decoder together on a processor: they stay in its cache between layers.
DECODER_QUERIES = 512
# At few queries only the windows that they read are made of upsampled maps; below this many fine pixels per query the
# whole maps cost less, which bounds their memory to 6 C numbers for each query.
FINE_PIXELS_PER_QUERY = 2
# What ``position_encoding: published`` means.
PUBLISHED_ENCODING = {'scale': 10, 'dims': 64}


@dataclass(frozen=True)
class HeadSpec:
    """What a head is made of; the options of :class:`clit_basicsr.archs.lit_arch.LIT`, where they are described.

    Raises:
        UserError: the options contradict each other.
    """

    dim: int = 256
    num_heads: int = 8
    grid_size: int = 7
    hidden_dims: Sequence[int] = (256, 256, 256, 256)
    position_encoding: str | dict | None = 'paper'
    local_attention: bool = True
    cell: bool = True
    aggregation: str = 'flatten'
    frequency_dims: int = 0
    frequency_scale: float = 6
    local_ensemble: bool = False
    first_conv: bool = True

    def __post_init__(self) -> None:
        if self.grid_size < 1 or self.grid_size % 2 == 0:
            raise UserError(f'grid_size must be an odd number of at least 1; got {self.grid_size}.')
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise UserError(f'dim must be a multiple of num_heads; got dim {self.dim}, num_heads {self.num_heads}.')
        if self.aggregation not in ('flatten', 'sum'):
            raise UserError(f"aggregation must be 'flatten' or 'sum'; got {self.aggregation!r}.")
        if self.frequency_dims and self.aggregation != 'flatten':
            raise UserError('the frequency block needs aggregation: flatten.')

    @property
    def window(self) -> int:
        """Side of the local grid, in pixels: 1 without local attention."""
        return self.grid_size if self.local_attention else 1

    @property
    def decoder_inputs(self) -> int:
        positions = 1 if self.aggregation == 'sum' else self.window**2
        return positions * (self.dim + self.frequency_dims) + (2 if self.cell else 0)


class PositionEncoder(SingleFrequencies):
    """Equations (4) and (5): the positional bias B = FC(gamma(dx)) of every head.

    Args:
        num_heads (int): H.
        encoding (str | dict): The frequencies of gamma. 'paper': 2^0 ... 2^9. ``{scale: S, dims: D}``, as in published
            checkpoints (``posenc_scale``, ``enc_dims``): 2^linspace(0, S, D / 4) - 1. 'published': scale 10, dims 64.
    """

    def __init__(self, num_heads: int, encoding: str | dict = 'paper') -> None:
        super().__init__()
        self.register_buffer('freqs', frequencies(encoding), persistent=False)
        self.proj = nn.Linear(4 * len(self.freqs), num_heads)

    def forward(self) -> PositionalBias:
        """The parameters as the attention takes them."""
        return PositionalBias(self.freqs, self.proj.weight, self.proj.bias)


def frequencies(encoding: str | dict) -> Tensor:
    """The frequencies (F,) of an option ``position_encoding``, see :class:`PositionEncoder`.

    Raises:
        UserError: the encoding is not one of these.
    """
    if encoding == 'paper':
        # listed, as a power on the meta device (networks of files are outlined there) would import torch._dynamo
        return torch.tensor([2.0**n for n in range(10)])
    block = PUBLISHED_ENCODING if encoding == 'published' else encoding
    if not isinstance(block, dict):
        raise UserError(
            "position_encoding must be 'paper', 'published', a block such as {scale: 8, dims: 32}, or ~ (none); got "
            f'{encoding!r}.'
        )
    if block.keys() != {'scale', 'dims'}:
        raise UserError(f'position_encoding takes the keys scale and dims, both of them; got {", ".join(block)}.')
    scale, dims = block['scale'], block['dims']
    if not isinstance(scale, (int, float)) or isinstance(scale, bool):
        raise UserError(f'position_encoding:scale must be a number; got {scale!r}.')
    if not isinstance(dims, int) or dims < 4 or dims % 4:
        raise UserError(f'position_encoding:dims must be a multiple of 4; got {dims!r}.')
    return 2 ** torch.linspace(0, scale, dims // 4) - 1


class BranchInput(NamedTuple):
    """What a branch works on.

    Attributes:
        z: (B, C, h, w), features: the window of their grid that ``frame`` describes.
        frame: that window.
        upsampling: the finer grid that the branch works on; None: that of the features.
        maps: from the branch's ``prepare`` or ``prepare_upsampled``; None: to be derived from z.
    """

    z: Tensor
    frame: Frame
    upsampling: Upsampling | None = None
    maps: Any = None

    @property
    def target(self) -> Frame:
        """The window of the grid that the branch works on."""
        return self.frame if self.upsampling is None else self.upsampling.target


class LITBranch(nn.Module):
    """Local attention and decoder over one feature map: equations (1)-(3), (6), (7).

    Args:
        spec (HeadSpec): See :class:`HeadSpec`.
    """

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec, self.grid_size = spec, spec.window
        self.conv_q = nn.Conv2d(spec.dim, spec.dim, 3, 1, 1) if spec.local_attention else None
        self.conv_k = nn.Conv2d(spec.dim, spec.dim, 3, 1, 1) if spec.local_attention else None
        self.conv_v = nn.Conv2d(spec.dim, spec.dim, 3, 1, 1)
        self.decoder = build_mlp(spec.decoder_inputs, spec.hidden_dims, activation=nn.GELU)

    def backend(self, z: Tensor, coord: Tensor | None = None) -> str:
        """The backend of :mod:`clit_basicsr.ops` that answers this branch's queries."""
        return backends.select(None, Call(z, self.spec.local_attention, coord, self.spec.aggregation))

    def prepare(self, z: Tensor) -> tuple[Tensor | None, ...]:
        """What :class:`BranchInput` holds as ``maps`` on the grid of the features: q, k and v."""
        backend = self.backend(z)
        maps = self.project(BranchInput(z, Frame((z.shape[2], z.shape[3]))), backend)
        if backend == 'reference':
            return maps
        # As the kernels read them: made so once, not at every query.
        return tuple(None if t is None else t.contiguous(memory_format=torch.channels_last) for t in maps)

    def prepare_upsampled(self, z: Tensor) -> TapProducts | None:
        """The same for finer grids: products that work at every scale and stay at the resolution of z.

        None with gradients and for the reference backend, which make the upsampled maps whole at each call.
        """
        if self.backend(z) == 'reference' or torch.is_grad_enabled():
            return None
        return TapProducts.make(z, self._convs())

    def project(self, source: BranchInput, backend: str) -> tuple[Tensor | None, ...]:
        """q, k and v, (B, C, h, w) each, on the finer grid if there is one; q, k are None without local attention."""
        z, upsampling = source.z, source.upsampling
        if upsampling is not None and backend != 'reference':
            return tuple(upsampled_conv(z, *conv, upsampling, backend) for conv in self._convs())
        z = z if upsampling is None else upsample(z, upsampling)
        return tuple(None if conv is None else conv(z) for conv in (self.conv_q, self.conv_k, self.conv_v))

    def forward(self, source: BranchInput, coord: Tensor, cell: Tensor, bias: PositionalBias | None) -> Tensor:
        """Values at the queries, in the decoder's units, see :func:`clit_basicsr.archs.implicit.to_image`.

        Args:
            coord: (B, Q, 2).
            cell: (B, 2) or (B, Q, 2).

        Returns:
            Tensor: (B, Q, 3).
        """
        backend, layer = self.backend(source.z, coord), self._first_layer()
        size = relative_cell(cell, coord, source.target) if self.spec.cell else None
        rest = compiled(cast(nn.Sequential, self.decoder[1:]), source.z)
        if self._few_queries(source, coord, backend):
            upsampling = cast(Upsampling, source.upsampling)
            maps = source.maps or TapProducts.make(source.z, self._convs())
            first = window_attention(maps, upsampling, coord, self._head(bias), layer, size, backend)
            return rest(first)
        q, k, v = source.maps if source.upsampling is None and source.maps else self.project(source, backend)
        # With gradients the fast backends bound their memory themselves.
        whole = backend != 'reference' and torch.is_grad_enabled()
        step = coord.shape[1] if whole else max(1, MAX_QUERIES // coord.shape[0])
        out = []
        for start in range(0, coord.shape[1], step):
            part = slice(start, start + step)
            first = local_attention(
                q,
                k,
                cast(Tensor, v),
                coord[:, part],
                source.target,
                *layer,
                num_heads=self.spec.num_heads,
                grid_size=self.grid_size,
                bias=bias,
                cell=None if size is None else size[:, part],
                aggregation=self.spec.aggregation,
                backend=backend,
            )
            out.append(rest(first))
        return torch.cat(out, dim=1)

    def add_piece(self, out: Tensor, source: MapRows, piece: Piece, bias: PositionalBias | None) -> None:
        """Adds the branch's values at a piece of one picture to ``out`` (3, rows, cols), by a fast backend."""
        weight, offset = self._first_layer()
        if self.spec.cell:  # the same for all pixels: a part of the layer's bias
            cell = numbers([2 / n for n in piece.size], offset) * numbers(source.target.size, offset)
            weight, offset = weight[:, :-2], offset + weight[:, -2:] @ cell
        rest = compiled(cast(nn.Sequential, self.decoder[1:]), source.z)
        for y, x, first in dense_first_layer(source, piece, Linear(weight, offset), self._head(bias), source.backend):
            rows, cols = piece.place(y, x)
            out[:, rows, cols] += decode_rows(rest, first).permute(2, 0, 1)

    def rows(self, feat: BranchInput, first: nn.Module, backend: str) -> MapRows:
        """The source of q, k and v for :meth:`add_piece`.

        Args:
            feat: the encoder's features of one image.
            first: the convolution that comes before the branch.
        """
        convs = self._convs()
        return MapRows(feat.z, feat.frame, _parameters(first), (convs[0], convs[1], convs[2]), feat.upsampling, backend)

    def attention(self, source: BranchInput, coord: Tensor, bias: PositionalBias | None) -> Tensor:
        """Equation (6) at the queries, (B, Q, H, G, G), by the readable definition.

        Raises:
            UserError: the branch has no local attention.
        """
        q, k, _ = self.project(source, 'reference')
        if q is None or k is None:
            raise UserError('the network was built with local_attention: false, so it has no weights to show.')
        weights = attention_weights(q, k, coord, source.target, self.spec.num_heads, self.grid_size, bias)
        return weights.transpose(2, 3).unflatten(3, (self.grid_size, self.grid_size))

    def _few_queries(self, source: BranchInput, coord: Tensor, backend: str) -> bool:
        """Whether it costs less to make the windows of the queries than whole upsampled maps; never with gradients."""
        if source.upsampling is None or backend == 'reference' or torch.is_grad_enabled():
            return False
        fine = source.upsampling.size[0] * source.upsampling.size[1]
        return fine > FINE_PIXELS_PER_QUERY * coord.shape[1]

    def _first_layer(self) -> Linear:
        layer = cast(nn.Linear, self.decoder[0])
        return Linear(layer.weight, layer.bias)

    def _head(self, bias: PositionalBias | None) -> Head:
        return Head(self.spec.num_heads, self.grid_size, bias)

    def _convs(self) -> list[Conv]:
        """Of q, k and v, where there is local attention."""
        return [_parameters(cast(nn.Module, conv)) for conv in (self.conv_q, self.conv_k, self.conv_v)]


def decode_rows(layers: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """The decoder's layers after the first: (R, S, O) -> (R, S, 3). Overwrites ``first``."""
    if not isinstance(layers, nn.Sequential):
        return layers(first)
    step = DECODER_QUERIES * torch.get_num_threads() if first.device.type == 'cpu' else first.shape[:2].numel()
    parts = []
    for part in first.flatten(0, 1).split(step):
        for layer in layers:
            part = torch.ops.aten.gelu_(part) if isinstance(layer, nn.GELU) else layer(part)
        parts.append(part)
    return torch.cat(parts).view(*first.shape[:2], -1)


def _parameters(conv: nn.Module) -> Conv:
    return Conv(cast(Tensor, conv.weight), cast(Tensor, conv.bias))
