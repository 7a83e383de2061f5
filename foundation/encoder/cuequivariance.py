"""The channel by channel product through NVIDIA's cuEquivariance, whose CUDA kernel reads each feature once.

An optional backend of the same layout, the same Clebsch-Gordan tables and no weights of its own: a model trained
with it loads without it, and the other way round.
"""

from __future__ import annotations

import importlib.util

from torch import Tensor, nn

from datamodules.errors import InputError
from foundation.encoder.products import natural_table


class CuEquivarianceProduct(nn.Module):
    """Product of two features of degrees l1 and l2 to degree l3, channel by channel.

    Equal to ``foundation.encoder.products.ChannelwiseProduct``. On a GPU the fused kernel of
    ``cuequivariance-ops-torch`` runs; on the CPU cuEquivariance's plain PyTorch method, so that the same model
    predicts anywhere.

    Args:
        l1: Degree of the first feature.
        l2: Degree of the second feature.
        l3: Degree of the result, as ``natural_table`` takes them.
        channels: Channels C of all three; the kernel is made for this number.

    Raises:
        InputError: If cuEquivariance is not installed.
    """

    def __init__(self, l1: int, l2: int, l3: int, channels: int) -> None:
        super().__init__()
        table = natural_table(l1, l2, l3)
        if not is_installed():
            raise InputError(
                "products cuequivariance: not installed; pip install 'crystal-foundation[cuequivariance]' and, for a "
                "GPU, cuequivariance-ops-torch-cu12 or -cu13; or choose products plain, which gives the same numbers"
            )
        self.degrees = (l1, l2, l3)
        self.channels = channels
        self.on_cpu = _polynomial(table, channels, "naive")
        has_kernels = importlib.util.find_spec("cuequivariance_ops_torch") is not None
        self.on_gpu = _polynomial(table, channels, "uniform_1d") if has_kernels else self.on_cpu

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, 2 l1 + 1, C], [N, 2 l2 + 1, C] -> [N, 2 l3 + 1, C]."""
        product = self.on_gpu if first.is_cuda else self.on_cpu
        flat: Tensor = product([first.flatten(1), second.flatten(1)])[0]
        return flat.view(-1, 2 * self.degrees[2] + 1, self.channels)

    def extra_repr(self) -> str:
        return "{} x {} -> {}, {} channels".format(*self.degrees, self.channels)


def is_installed() -> bool:
    """Whether cuEquivariance is here; its kernels for GPUs may still be missing."""
    return importlib.util.find_spec("cuequivariance_torch") is not None


def _polynomial(table: Tensor, channels: int, method: str) -> nn.Module:
    """The product for cuEquivariance: one segment of C channels per component, one path per nonzero of the table."""
    import cuequivariance as cue
    from cuequivariance_torch import SegmentedPolynomial

    # e3nn's table, not cuEquivariance's own: the two order and sign the components of a degree differently.
    product = cue.SegmentedTensorProduct.from_subscripts("u,u,u")
    for operand, components in enumerate(table.shape):
        product.add_segments(operand, components * [(channels,)])
    for i, j, k in table.abs().gt(1e-10).nonzero().tolist():
        product.add_path(i, j, k, c=float(table[i, j, k]))
    made: nn.Module = SegmentedPolynomial(cue.SegmentedPolynomial.eval_last_operand(product), method=method)
    for module in made.modules():  # constants of the table have no place among the weights of a checkpoint
        for name, constant in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, constant, persistent=False)
    return made
