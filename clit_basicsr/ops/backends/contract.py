"""What a backend of the local attention is: a module with the names of :class:`Backend`, and with kernels those of
:class:`Kernels`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clit_basicsr.ops.backends import native
from clit_basicsr.ops.backends.constant import constant_result

# Bytes of a band of q, k and v, and queries per step, when whole pictures are made: both bound the memory, neither
# changes the result. A GPU needs more work at a time than a processor's cache holds.
BAND_BYTES, GPU_BAND_BYTES = 32 << 20, 512 << 20
STEP_QUERIES, GPU_STEP_QUERIES = 4096, 1 << 20


class Call(NamedTuple):
    """A call of :func:`clit_basicsr.ops.local_attention`, as far as backends differ in what they can run.

    Attributes:
        v: the values; None: any that the backend likes.
        attention: whether there are q and k.
        coord: the queries; None: whole pictures.
        aggregation: 'flatten' or 'sum'.
    """

    v: Tensor | None = None
    attention: bool = True
    coord: Tensor | None = None
    aggregation: str = 'flatten'


class Tuning(NamedTuple):
    """How whole pictures are cut for a backend.

    Attributes:
        sharing_pays: queries per pixel from which on sharing a window is cheaper than treating every query alone.
        band_bytes: of a band of q, k and v.
        step_queries: of a step.
        shares_runs: whether the backend has :meth:`Kernels.dense_linear_runs`.
    """

    sharing_pays: float
    band_bytes: int
    step_queries: int
    shares_runs: bool = False

    @classmethod
    def make(cls, device: torch.device, sharing_pays: float) -> 'Tuning':
        if device.type == 'cpu':
            return cls(sharing_pays, BAND_BYTES, STEP_QUERIES)
        return cls(sharing_pays, GPU_BAND_BYTES, GPU_STEP_QUERIES)


class Backend(Protocol):
    """The predicate, which selection and error messages both ask."""

    NAME: str

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """Why the backend cannot run here at all, or on that device; None if it can. Builds its kernels if need be."""
        ...

    def reason(self, call: Call) -> str | None:
        """Why the backend cannot run a call; None if it can."""
        ...


class Kernels(Backend, Protocol):
    """A backend with kernels; :mod:`clit_basicsr.ops.operators` gives them gradients.

    Maps are (B, h, w, C); window pixels outside a map read as 0, as the image's surroundings do.
    """

    def tuning(self, device: torch.device) -> Tuning:
        """How whole pictures on that device are cut."""
        ...

    def attention(self, query: Tensor, k: Tensor, bias_y: Tensor, bias_x: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Equation (6) with a separable bias.

        Args:
            query: (B, Q, C), q at the queries.
            k: (B, h, w, C).
            bias_y, bias_x: (B, Q, G, H).
            y, x: (B, Q), the pixel of the map nearest to each query.

        Returns:
            Tensor: (B, Q, H, G * G).
        """
        ...

    def attention_backward(
        self, grad: Tensor, out: Tensor, query: Tensor, k: Tensor, y: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of :meth:`attention` for query, k, bias_y and bias_x, from those of its result ``out``."""
        ...

    def attend_linear(self, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Weights the values of each local grid and applies the decoder's first layer, without its bias: equation (7).

        Args:
            attention: (B, Q, H, G * G).
            v: (B, h, w, C).
            weight: (O, G * G * C).
            y, x: (B, Q), the pixel of the map nearest to each query.

        Returns:
            Tensor: (B, Q, O).
        """
        ...

    def attend_linear_backward(
        self, grad: Tensor, attention: Tensor, v: Tensor, weight: Tensor, y: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`attend_linear` for attention, v and weight; the products are made again by chunks."""
        ...

    def pack(self, weight: Tensor, heads: int, grid: int) -> Tensor:
        """The first layer (O, G * G * C) as :meth:`dense_linear` of the backend reads it."""
        ...

    def dense_linear(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: Tensor,
        bias: Tensor,
        rows: tuple[Tensor, ...],
        cols: tuple[Tensor, ...],
    ) -> Tensor:
        """Equations (6) and (7) for a grid of queries: all queries with the same nearest pixel share one window.

        With P[(g, h), o] = sum over c in head h of weight[o, (g, c)] * v[p + g, c], made once per pixel p, the first
        layer of each of its queries is the sum over (g, h) of attention[g, h] * P[(g, h)].

        Args:
            q, k, v: (B, h, w, C), the same window of the feature grid.
            packed: the first layer, from :meth:`pack`.
            bias: (O,).
            rows, cols: the two axes (:class:`~clit_basicsr.ops.geometry.axes.Axis`) of the R x S queries.

        Returns:
            Tensor: (B, R, S, O).
        """
        ...

    def dense_linear_runs(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: Tensor,
        bias: Tensor,
        rows: tuple[Tensor, ...],
        cols: tuple[Tensor, ...],
        runs: tuple[Tensor, Tensor],
    ) -> Tensor:
        """:meth:`dense_linear` over upsampled features, where the backend's tuning says that it has it.

        Args:
            runs: (h,), (w,): rows and columns of equal numbers, next to each other, are a run, in which v is affine in
                the place (:func:`~clit_basicsr.ops.geometry.axes.affine_runs`): the products are made for two pixels
                of a run and for the others combined.
        """
        ...

    def upsampled_conv(
        self, z: Tensor, weight: Tensor, bias: Tensor, rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]
    ) -> Tensor:
        """conv3x3(upsample(z)) on the fine pixels rows x cols.

        Args:
            z: (B, h, w, C).
            weight, bias: (O, C, 3, 3), (O,).
            rows, cols: (index, weight), each (R, 3, 2) and (S, 3, 2), from
                :func:`~clit_basicsr.ops.geometry.axes.convolution_taps`.

        Returns:
            Tensor: (B, R, S, O).
        """
        ...

    def upsampled_conv_backward(
        self, grad: Tensor, z: Tensor, weight: Tensor, rows: tuple[Tensor, Tensor], cols: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`upsampled_conv` with respect to z, weight and bias."""
        ...


def unsupported(call: Call) -> str | None:
    """Why none of the fast backends can run a call: they have one way of attending, and no gradient for positions."""
    if not call.attention:
        return 'without q and k it has no attention to speed up'
    if call.aggregation != 'flatten':
        return f'aggregation {call.aggregation!r} has no fast path'
    if call.coord is not None and call.coord.requires_grad:
        return 'it has no gradient with respect to coord'
    return None


@constant_result
def not_built(name: str, gpus: tuple[int, ...] = ()) -> str | None:
    """Why the compiled kernels of that name cannot be used; None if they are loaded. gpus: see ``native.build``."""
    cause = native.problem(name, gpus)
    return None if cause is None else f'its kernels are not built: {cause}'
