"""Thera's heat field on the pixels of a picture, without a sine or an exponential for each of them.

With the angle addition theorem, f = Im sum_j K_j e^{i b_j} G_y(row) G_x(column), where G_y and G_x are tables of
exp(-kappa omega^2 t + i omega delta) for the rows and the columns of the picture; what an LR pixel adds, K e^{i b}, is
made once. At whole factors all LR pixels share the offsets, and one product of matrices answers them.

The readable definition is :meth:`clit_basicsr.archs.thera_arch.Thera._part`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clit_basicsr.archs.features import Features
from clit_basicsr.ops.geometry.coords import Bounds, Piece, numbers

# Components that add less than this to the field, whatever the LR pixel says, are left out.
NEGLIGIBLE = 1e-8
# Numbers in the largest tensor that is made at a time, per image: bounds the memory.
BAND_NUMBERS = 2**22


class Field(NamedTuple):
    """What all LR pixels have in common.

    Attributes:
        weight, bias: (4 J, C) and (4 J,), of the layer that makes a pixel's numbers: 3 J amplitudes, component slow
            and colour fast, then J phases.
        components: (2, J), frequencies in y and in x, radians per LR pixel.
        kappa: (), the diffusivity.
        mean: of the colours.
    """

    weight: Tensor
    bias: Tensor
    components: Tensor
    kappa: Tensor
    mean: tuple[float, float, float]

    def kept(self, z: Tensor, time: tuple[float, float]) -> 'Field':
        """The field without the components that the heat equation has damped away at that time (y, x).

        Amplitudes are reordered: colour slow, component fast. On a GPU all components stay: it would
        have to be waited for how many are left.
        """
        count = self.components.shape[1]
        weight, bias = (x[: 3 * count].unflatten(0, (count, 3)).transpose(0, 1) for x in (self.weight, self.bias))
        largest = (bias.abs() + weight.abs().sum(dim=-1) * z.abs().amax()).amax(dim=0)  # (J,), no amplitude is above
        decay = (self.components.square() * numbers(time, z).unsqueeze(1)).sum(dim=0) * -self.kappa
        # Not (<=): components with NaN in them are kept, and show.
        keep = ~(decay.exp() * largest <= NEGLIGIBLE) if z.device.type == 'cpu' else slice(None)
        weight = torch.cat((weight[:, keep].flatten(0, 1), self.weight[3 * count :][keep]))
        bias = torch.cat((bias[:, keep].flatten(), self.bias[3 * count :][keep]))
        return self._replace(weight=weight, bias=bias, components=self.components[:, keep])

    def table(self, axis: int, delta: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, (n, J) each, of G of one axis at n distances from the pixel's centre."""
        omega = self.components[axis]
        decay, angle = (-self.kappa * omega.square() * time).exp(), delta.unsqueeze(1) * omega
        return decay * angle.cos(), decay * angle.sin()

    def pixels(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """K cos b and K sin b of pixels z (P, C): (P, 3, J) each."""
        values = F.linear(z, self.weight, self.bias)
        count = self.components.shape[1]
        amplitude, phase = values[:, : 3 * count].unflatten(1, (3, count)), values[:, 3 * count :].unsqueeze(1)
        return amplitude * phase.cos(), amplitude * phase.sin()


class Cells(NamedTuple):
    """The HR pixels of a part of an axis, by the LR pixels that answer them.

    Attributes:
        first, length: LR pixels first ... first + length - 1 answer.
        members: (length, m), which HR pixels, counted in the part; the last is repeated where there are fewer than m.
        delta: (n,), distance of each HR pixel from its LR pixel's centre, in LR pixels.
        pixel: (n,), its LR pixel, counted from ``first``.
    """

    first: int
    length: int
    members: Tensor
    delta: Tensor
    pixel: Tensor

    @classmethod
    def of(cls, n: int, n_hr: int, bounds: Bounds) -> 'Cells':
        """HR pixels bounds[0] ... bounds[1] - 1 of n_hr over n LR pixels: exact, in whole numbers."""
        pixel, delta = dense_axis(n, n_hr, *bounds)
        first, count = int(pixel[0]), int(pixel[-1] - pixel[0]) + 1
        pixel = pixel - first
        start = torch.searchsorted(pixel, torch.arange(count + 1))
        most = int((start[1:] - start[:-1]).max())
        members = torch.minimum(start[:-1, None] + torch.arange(most), start[1:, None] - 1)
        return cls(first, count, members, delta, pixel)


def dense_axis(n: int, n_hr: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The LR pixel of n that answers each HR pixel start ... stop - 1 of n_hr, borders going to the higher one, and
    the distance of their centres in LR pixels.
    """
    place = (2 * torch.arange(start, stop) + 1) * n  # in units of 1 / (2 n_hr) LR pixels
    pixel = place // (2 * n_hr)
    return pixel, ((place - 2 * n_hr * pixel).double() / (2 * n_hr) - 0.5).float()


def fill_picture(out: Tensor, field: Field, feat: Features, piece: Piece) -> None:
    """Answers a piece of a picture into ``out`` (3, rows, cols) from the features of one image, batch dimension 1."""
    device, (h, w) = out.device, feat.image_size
    time = (h / piece.size[0]) ** 2, (w / piece.size[1]) ** 2
    z = feat.z.to(field.weight.dtype)
    field = field.kept(z, time)
    rows, cols = Cells.of(h, piece.size[0], piece.rows), Cells.of(w, piece.size[1], piece.cols)
    whole = piece.size[0] % h == 0 and piece.size[1] % w == 0
    answer = whole_factors if whole else any_factors
    # For each colour of an LR pixel: K e^{i b} and its HR pixels; or, for each of its HR rows, U and the HR pixels.
    own, (high, wide) = 2 * field.components.shape[1], (axis.members.shape[1] for axis in (rows, cols))
    per_row = cols.length * 3 * (own + high * wide if whole else high * (own + wide))
    step = max(1, BAND_NUMBERS // per_row)
    top, left = rows.first - feat.frame.origin[0], cols.first - feat.frame.origin[1]
    mean = numbers(field.mean, out).view(3, 1, 1)
    for start in range(0, rows.length, step):
        stop = min(start + step, rows.length)
        inside = ((rows.pixel >= start) & (rows.pixel < stop)).nonzero().flatten()
        y0, y1 = int(inside[0]), int(inside[-1]) + 1
        band = Cells(
            rows.first + start,
            stop - start,
            rows.members[start:stop] - y0,
            rows.delta[y0:y1],
            rows.pixel[y0:y1] - start,
        )
        window = (0, slice(None), slice(top + start, top + stop), slice(left, left + cols.length))
        values = answer(field, z[window], band, cols, time)
        skip = feat.lq[window][:, band.pixel.to(device, non_blocking=True)][
            :, :, cols.pixel.to(device, non_blocking=True)
        ]
        out[:, y0:y1] = 0.5 * values + mean + skip


def any_factors(field: Field, z: Tensor, rows: Cells, cols: Cells, time: tuple[float, float]) -> Tensor:
    """The field (3, n_rows, n_cols) over LR pixels z (C, h, w): a product for the row, then one of matrices.

    f = Im(U G_x), U = K e^{i b} G_y: U once for each HR row and LR column.
    """
    device = z.device
    cos, sin = (x.unflatten(0, (cols.length, rows.length)) for x in field.pixels(z.permute(2, 1, 0).flatten(0, 1)))
    real, imag = (
        x.unsqueeze(1) for x in field.table(0, rows.delta.to(device, non_blocking=True), time[0])
    )  # (n_rows, 1, J)
    pixel = rows.pixel.to(device, non_blocking=True)
    cos, sin = cos[:, pixel], sin[:, pixel]  # (w, n_rows, 3, J)
    u = torch.cat((cos * imag + sin * real, cos * real - sin * imag), dim=-1)  # Im U, Re U
    g = torch.cat(field.table(1, cols.delta.to(device, non_blocking=True), time[1]), dim=-1)[
        cols.members.to(device, non_blocking=True)
    ]  # (w, m, 2 J)
    f = u.flatten(1, 2) @ g.transpose(1, 2)  # (w, n_rows * 3, m)
    f = f.unflatten(1, (-1, 3)).permute(2, 1, 0, 3).flatten(2)  # (3, n_rows, w * m)
    place = cols.pixel * cols.members.shape[1] + torch.arange(len(cols.pixel)) - cols.members[cols.pixel, 0]
    return f[..., place.to(device, non_blocking=True)]


def whole_factors(field: Field, z: Tensor, rows: Cells, cols: Cells, time: tuple[float, float]) -> Tensor:
    """The same where all LR pixels share their offsets: one matrix answers the whole cell of a pixel."""
    device = z.device
    a = torch.cat(field.pixels(z.permute(1, 2, 0).flatten(0, 1)), dim=-1)  # (h * w, 3, 2 J)
    # All offsets of a cell are there even where the part cuts it: they follow from their number.
    m = [round(t**-0.5) for t in time]
    offsets = [((torch.arange(n, device=device) + 0.5) / n - 0.5) for n in m]
    (ry, iy), (rx, ix) = (field.table(axis, offsets[axis], time[axis]) for axis in (0, 1))
    sin = ry.unsqueeze(1) * ix + iy.unsqueeze(1) * rx  # (m_y, m_x, J), goes with K cos b
    cos = ry.unsqueeze(1) * rx - iy.unsqueeze(1) * ix
    f = a.flatten(0, 1) @ torch.cat((sin, cos), dim=-1).flatten(0, 1).t()  # (h * w * 3, m_y * m_x)
    f = f.view(rows.length, cols.length, 3, m[0], m[1]).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    y, x = (round((float(axis.delta[0]) + 0.5) * n - 0.5) for axis, n in ((rows, m[0]), (cols, m[1])))
    return f[:, y : y + len(rows.delta), x : x + len(cols.delta)]
