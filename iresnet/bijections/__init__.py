"""Invertible maps with log-determinants."""

__all__ = [
    "ActNorm",
    "Affine",
    "BiLipschitzBlock",
    "Bijection",
    "Chain",
    "FactorOut",
    "Flatten",
    "InjectivePad",
    "Inverse",
    "Inversion",
    "LogDets",
    "Logit",
    "MonotoneBlock",
    "Orthogonal",
    "RandomChunk",
    "Reorder",
    "Report",
    "ResidualBlock",
    "Spline",
    "Squeeze",
    "VariationalDequantization",
    "Whitening",
    "as_they_are",
    "check_dtype",
    "check_events",
    "inverse_and_logdet",
    "invert",
    "latent_shapes",
    "trace",
]

from iresnet.bijections.base import Bijection, Chain, Inversion, LogDets, Report, check_dtype, check_events, invert
from iresnet.bijections.bilipschitz import BiLipschitzBlock
from iresnet.bijections.dequantization import VariationalDequantization
from iresnet.bijections.elementwise import ActNorm, Affine, Logit, as_they_are
from iresnet.bijections.inverse import Inverse, inverse_and_logdet
from iresnet.bijections.monotone import MonotoneBlock
from iresnet.bijections.orthogonal import Orthogonal
from iresnet.bijections.reshape import (
    FactorOut,
    Flatten,
    InjectivePad,
    Reorder,
    Squeeze,
    latent_shapes,
    trace,
)
from iresnet.bijections.residual import RandomChunk, ResidualBlock
from iresnet.bijections.spline import Spline
from iresnet.bijections.whitening import Whitening
