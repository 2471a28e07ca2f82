"""Products of Hermite functions, linear in what is trained."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

__all__ = ["Hermite"]

_NOWHERE = 50.0  # exp(-x^2 / 2) is zero in double precision: from here on nothing overflows either


class Hermite(nn.Module):
    r"""A sum of products of Hermite functions of the inputs, bounded whatever the inputs are.

    .. math::

        p(x) = b + \sum_{0 < |\alpha| \le P} B \tanh(a_\alpha / B)
            \prod_j \varphi_{\alpha_j}(x_j / w_j), \qquad
        \varphi_0 = 1, \quad \varphi_k = \psi_{k - 1}

    The Hermite function :math:`\psi_n` is the Hermite polynomial of degree :math:`n` times
    :math:`e^{-x^2 / 2}`, normalised: smooth, at most 0.76, and zero far out, so that :math:`p`
    returns to :math:`b` there, where a polynomial would diverge. The coefficients lie within
    :math:`\pm B` and the widths :math:`w_j` within 1/4 and 4. The raws :math:`a, b` start at zero,
    and so does the output.

    There are :math:`\binom{D + P}{P} - 1` products of :math:`D` inputs: take it for few inputs.

    References:
        | On the Representation and Learning of Monotone Triangular Transport Maps
        | (Baptista et al., 2023), section 4
        | https://arxiv.org/abs/2009.10303

    Args:
        input_dim: Number :math:`D` of inputs, of order one each.
        output_dim: Number of outputs.
        degree: Largest sum :math:`P` of the orders in a product.
        bound: Bound :math:`B` of the coefficients.

    Raises:
        ValueError: If ``degree`` is not a positive int or ``bound`` not positive.

    Example:
        >>> network = Hermite(2, 5, degree=3)
        >>> print(network(torch.ones(7, 2)).shape)
        torch.Size([7, 5])
    """

    terms: Tensor

    def __init__(
        self, input_dim: int, output_dim: int, *, degree: int = 3, bound: float = 5.0
    ) -> None:
        super().__init__()
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
            raise ValueError(f"Hermite expected degree to be a positive int, got {degree!r}.")
        if not bound > 0:
            raise ValueError(f"Hermite expected bound > 0, got {bound}.")
        self.degree = degree
        self.bound = bound
        terms = _terms(input_dim, degree)
        self.register_buffer("terms", torch.tensor(terms), persistent=False)
        self.coefficients = nn.Parameter(torch.zeros(output_dim, len(terms)))
        self.bias = nn.Parameter(torch.zeros(output_dim))
        self.raw_width = nn.Parameter(torch.zeros(input_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, with shape ``(*batch, output_dim)``."""
        table = torch.cat(self._functions(x * torch.exp(-math.log(4) * self.raw_width.tanh())), -1)
        features = table[..., self.terms[:, 0]]
        for factor in self.terms.unbind(-1)[1:]:
            features = features * table[..., factor]
        coefficients = self.bound * (self.coefficients / self.bound).tanh()
        return self.bias + features @ coefficients.mT

    def _functions(self, x: Tensor) -> list[Tensor]:
        """One, and the Hermite functions by their recurrence, which is stable."""
        x = x.clamp(-_NOWHERE, _NOWHERE)
        functions = [torch.ones_like(x), math.pi**-0.25 * torch.exp(-0.5 * x.square())]
        before = torch.zeros_like(x)
        for n in range(self.degree - 1):
            last = functions[-1]
            following = math.sqrt(2 / (n + 1)) * x * last - math.sqrt(n / (n + 1)) * before
            functions.append(following)
            before = last
        return functions


def _terms(input_dim: int, degree: int) -> list[list[int]]:
    """The columns, out of those of all functions, whose product is each term but the constant."""
    found = []
    for chosen in combinations_with_replacement(range(input_dim + 1), degree):
        inputs = [i - 1 for i in chosen if i]  # each as often as is its order
        orders = {i: inputs.count(i) for i in inputs}
        columns = [order * input_dim + i for i, order in orders.items()]
        if columns:
            found.append(columns + [0] * (degree - len(columns)))  # column 0 is one
    return found
