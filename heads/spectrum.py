"""Spectra on a grid, such as the phonon density of states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules.errors import InputError
from datamodules.properties import Property, parse_grid
from heads.base import invariant_slice
from heads.constraints import inverse_positive, positive
from heads.metrics import Averaged, component_mae
from heads.pooling import MeanAndAttention
from heads.shaped import ShapedHead

PEAK = 0.1  # of the highest bin: what is lower is no peak
_SMALLEST = 1e-3  # of the scale: mean bins below start here, since the way back to zero is infinitely long


class SpectrumHead(ShapedHead):
    """One value per bin of a grid.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        grid: The bins, "first..last..count unit"; "" takes the property's own.
        nonnegative: Whether no bin can be negative; then no predicted one is.
        cumulative: Weight of the error of the cumulative curve beside that of the bins: a peak in the wrong bin is
            better nearby than far away.
        hidden: Channels of a hidden layer; 0 for a linear head.
        loss: Loss of a bin.
    """

    scale: Tensor
    offset: Tensor
    grid: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        grid: str = "",
        nonnegative: bool = True,
        cumulative: float = 1.0,
        hidden: int = 64,
        loss: Literal["l1", "mse"] = "l1",
    ) -> None:
        super().__init__(irreps_in, property)
        grid = grid or property.grid
        if property.level != "crystal" or property.kind != "spectrum" or not grid:
            raise InputError(
                f"property {property.name}: a SpectrumHead predicts a spectrum of the crystal on a grid; declare one "
                "at import, --property 'name:unit:grid=0..1000..51 cm^-1', or with --head.init_args.grid"
            )
        bins, self.grid_unit = parse_grid(grid)
        self.nonnegative = nonnegative
        self.cumulative = cumulative
        self.loss_name = loss
        self.scalars = invariant_slice(self.irreps_in)
        channels = self.scalars.stop - self.scalars.start
        self.pool = MeanAndAttention(channels)
        layers: list[nn.Module] = [nn.Linear(2 * channels, hidden), nn.SiLU()] if hidden else []
        self.network = nn.Sequential(*layers, nn.Linear(hidden or 2 * channels, len(bins)))
        self.register_buffer("grid", torch.from_numpy(bins).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(len(bins)))

    @property
    def shape(self) -> tuple[int, ...]:
        """[bins]."""
        return (len(self.grid),)

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B, bins] beside the mean spectrum, in scaled space."""
        out: Tensor = self.network(self.pool(features[:, self.scalars], batch))
        return out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B, bins] -> [B, bins] in physical units."""
        return self._constrained(scaled) * self.scale

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B, bins], [B, bins] physical target -> [B]."""
        error = self._constrained(scaled) - target / self.scale
        # The curve's error is divided by the number of bins, as the integral over the width of the whole grid.
        curve = error.cumsum(dim=1) / error.shape[1]
        if self.loss_name == "mse":
            return error.square().mean(dim=1) + self.cumulative * curve.square().mean(dim=1)
        return error.abs().mean(dim=1) + self.cumulative * curve.abs().mean(dim=1)

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set the scale and the mean spectrum of [M, bins] physical training labels.

        Raises:
            InputError: If a bin is negative and no predicted one can be.
        """
        if self.nonnegative and bool((target < 0).any()):
            raise InputError(
                f"property {self.property.name}: {int((target < 0).any(dim=1).sum())} training spectra have negative "
                "bins; set nonnegative: false or leave them out"
            )
        spread = target.std(dim=0, unbiased=False).square().mean().sqrt()
        self.scale.copy_(spread if spread > 0 else torch.ones_like(spread))
        mean = target.mean(dim=0) / self.scale
        self.offset.copy_(inverse_positive(mean.clamp(min=_SMALLEST)) if self.nonnegative else mean)

    def metrics(self, **sync: Any) -> Mapping[str, Metric]:
        """Error of the bins, of the normalised cumulative curve, and of the position of the last peak."""
        return {
            "mae": Averaged(component_mae, **sync),
            "cumulative_mae": Averaged(_cumulative_error, **sync),
            "last_peak_mae": Averaged(_PeakError(self.grid.tolist()), **sync),
        }

    def baseline(self, target: Tensor, batch: Any, asked: Any) -> Tensor:
        """The mean spectrum."""
        return target.mean(dim=0).expand(len(asked.num_atoms), -1)

    def _constrained(self, scaled: Tensor) -> Tensor:
        return positive(scaled + self.offset) if self.nonnegative else scaled + self.offset


def last_peak(spectra: Tensor, grid: Tensor) -> Tensor:
    """[K, bins], [bins] -> [K] position of the last local maximum that is no lower than a tenth of the highest bin."""
    edge = torch.full_like(spectra[:, :1], -torch.inf)
    before, after = torch.cat([edge, spectra[:, :-1]], dim=1), torch.cat([spectra[:, 1:], edge], dim=1)
    high = spectra >= PEAK * spectra.amax(dim=1, keepdim=True)
    peaks = (spectra >= before) & (spectra > after) & high
    place = torch.where(peaks, torch.arange(spectra.shape[1], device=spectra.device), 0).amax(dim=1)
    return grid[place]


class _PeakError:
    """Distance of the last peaks of two spectra, in the unit of the grid."""

    def __init__(self, grid: list[float]) -> None:
        self.grid = grid

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        grid = torch.tensor(self.grid, dtype=target.dtype, device=target.device)
        return (last_peak(predicted, grid) - last_peak(target, grid)).abs()


def _cumulative_error(predicted: Tensor, target: Tensor) -> Tensor:
    curves = (values.cumsum(dim=1) / values.sum(dim=1, keepdim=True).clamp(min=1e-12) for values in (predicted, target))
    one, two = curves
    return (one - two).abs().mean(dim=1)
