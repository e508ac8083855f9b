"""Evaluation: what a trained model is worth, with error bars."""

__all__ = [
    "Accuracy",
    "Calibration",
    "Detection",
    "Estimate",
    "Likelihood",
    "Reconstruction",
    "Uncertainty",
    "calibration",
    "classification",
    "detect",
    "detection",
    "gaussian_baseline",
    "likelihood",
    "reconstruction",
    "sample",
    "true_density",
    "uniform_baseline",
]

from iresnet.evaluation.baselines import gaussian_baseline, true_density, uniform_baseline
from iresnet.evaluation.calibration import Calibration, calibration
from iresnet.evaluation.classification import Accuracy, classification
from iresnet.evaluation.detection import Detection, detection
from iresnet.evaluation.inversion import Reconstruction, reconstruction
from iresnet.evaluation.likelihood import Estimate, Likelihood, likelihood
from iresnet.evaluation.ood import detect
from iresnet.evaluation.sampling import sample
from iresnet.evaluation.uncertainty import Uncertainty
