"""Invertible residual networks: models z = x + g(x) with Lip(g) < 1 that classify, estimate densities and generate."""

__all__ = [
    "ActNorm",
    "Affine",
    "Anderson",
    "BiLipschitzBlock",
    "Bijection",
    "CLipSwish",
    "Certificate",
    "Chain",
    "Classifier",
    "Dataset",
    "DiagonalNormal",
    "Exact",
    "FactorOut",
    "FeedThrough",
    "FixedPointIteration",
    "Flatten",
    "Flow",
    "FlowTransform",
    "Householder",
    "Hybrid",
    "InjectivePad",
    "Inverse",
    "Inversion",
    "Krylov",
    "LipSwish",
    "LipschitzConv2d",
    "LipschitzLinear",
    "LogDetEstimate",
    "LogDetEstimator",
    "Logit",
    "MaxMin",
    "MixtureNormal",
    "MonotoneBlock",
    "NewtonKrylov",
    "Orthogonal",
    "PowerSeries",
    "Reorder",
    "ResidualBlock",
    "RussianRoulette",
    "Solution",
    "Solver",
    "Spline",
    "Squeeze",
    "StandardNormal",
    "Trainer",
    "VariationalDequantization",
    "Whitening",
    "as_distribution",
    "certify",
    "data",
    "dequantise",
    "dequantize",
    "errors",
    "export",
    "from_pretrained",
    "hold_weights",
    "linearize",
    "load",
    "load_config",
    "networks",
    "progress",
    "push_to_hub",
    "save_pretrained",
    "seal",
    "use_precision",
    "zoo",
]

from . import data, errors, export, networks, zoo
from .accelerated import Anderson, NewtonKrylov
from .activations import CLipSwish, Householder, LipSwish, MaxMin
from .bars import progress
from .bases import DiagonalNormal, MixtureNormal, StandardNormal
from .bijections import (
    ActNorm,
    Affine,
    Bijection,
    BiLipschitzBlock,
    Chain,
    FactorOut,
    Flatten,
    InjectivePad,
    Inverse,
    Inversion,
    Logit,
    MonotoneBlock,
    Orthogonal,
    Reorder,
    ResidualBlock,
    Spline,
    Squeeze,
    VariationalDequantization,
    Whitening,
)
from .certificates import Certificate, certify, seal
from .classifiers import Classifier, Hybrid
from .config import load_config
from .data.dataset import Dataset
from .data.transforms import dequantise, dequantize
from .feedthrough import FeedThrough
from .flows import Flow
from .jacobian import linearize
from .lipschitz import LipschitzConv2d, LipschitzLinear, hold_weights
from .logdet import Exact, Krylov, LogDetEstimate, LogDetEstimator
from .precision import use_precision
from .pretrained import load
from .pretrained.hub import from_pretrained, push_to_hub, save_pretrained
from .pushforward import FlowTransform, as_distribution
from .series import PowerSeries, RussianRoulette
from .solvers import FixedPointIteration, Solution, Solver
from .training.trainer import Trainer
