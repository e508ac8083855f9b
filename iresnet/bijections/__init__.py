"""Invertible maps with log-determinants."""

__all__ = [
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "FactorOut",
    "Flatten",
    "InjectivePad",
    "Inversion",
    "Logit",
    "ResidualBlock",
    "Squeeze",
    "check_dtype",
    "check_events",
    "invert",
    "latent_parts",
    "logdet_of_one_part",
]

from iresnet.bijections.actnorm import ActNorm
from iresnet.bijections.base import Bijection, Chain, check_dtype, check_events
from iresnet.bijections.elementwise import Affine, Logit
from iresnet.bijections.inversion import Inversion, invert
from iresnet.bijections.reshape import FactorOut, Flatten, InjectivePad, Squeeze, latent_parts
from iresnet.bijections.residual import ResidualBlock, logdet_of_one_part
