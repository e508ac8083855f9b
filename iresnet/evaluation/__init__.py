"""Evaluation: what a trained model is worth, with error bars."""

__all__ = [
    "BUDGETS",
    "KINDS",
    "Accepted",
    "Accuracy",
    "Calibration",
    "Detection",
    "Estimate",
    "Likelihood",
    "Path",
    "Reconstruction",
    "Spent",
    "Uncertainty",
    "calibration",
    "classification",
    "decode",
    "detect",
    "detection",
    "evaluations_to",
    "gaussian_baseline",
    "latents_of_class",
    "likelihood",
    "paths",
    "reconstruction",
    "solver_errors",
    "true_density",
    "uniform_baseline",
]

from iresnet.evaluation.classification import Accuracy, Calibration, calibration, classification
from iresnet.evaluation.detection import Detection, detect, detection
from iresnet.evaluation.interpolation import KINDS, Path, paths
from iresnet.evaluation.likelihood import (
    Estimate,
    Likelihood,
    gaussian_baseline,
    likelihood,
    true_density,
    uniform_baseline,
)
from iresnet.evaluation.reconstruction import (
    BUDGETS,
    Reconstruction,
    Spent,
    evaluations_to,
    reconstruction,
    solver_errors,
)
from iresnet.evaluation.sampling import Accepted, decode, latents_of_class
from iresnet.evaluation.uncertainty import Uncertainty
