"""What flows, classifiers and hybrids have in common: how they were put together, and a short description."""

__all__ = ["Assembled"]

from typing import Any

from torch import nn


class Assembled(nn.Module):
    """Model that can be built again from names and numbers, where it was built so.

    Attributes:
        origin: arguments of :func:`iresnet.zoo.build`, or the recipe with facts about the data; None of a model that
            was put together by hand.
    """

    origin: Any = None
