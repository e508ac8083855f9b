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

from iresnet.evaluation.baselines import gaussian_baseline, true_density, uniform_baseline
from iresnet.evaluation.calibration import Calibration, calibration
from iresnet.evaluation.classification import Accuracy, classification
from iresnet.evaluation.conditional import Accepted, latents_of_class
from iresnet.evaluation.detection import Detection, detection
from iresnet.evaluation.interpolation import KINDS, Path, paths
from iresnet.evaluation.inversion import Reconstruction, reconstruction
from iresnet.evaluation.likelihood import Estimate, Likelihood, likelihood
from iresnet.evaluation.ood import detect
from iresnet.evaluation.sampling import decode
from iresnet.evaluation.solving import BUDGETS, Spent, evaluations_to, solver_errors
from iresnet.evaluation.uncertainty import Uncertainty
