"""Evaluation of trained models, with error bars."""

__all__ = [
    "BUDGETS",
    "KINDS",
    "Accuracy",
    "Calibration",
    "CertifiedAccuracy",
    "ClassLatents",
    "Detection",
    "Estimate",
    "Interpolation",
    "Likelihood",
    "Predictions",
    "Reconstruction",
    "Reference",
    "RoundTrip",
    "Scores",
    "Uncertainty",
    "calibration",
    "certified_accuracy",
    "certified_radius",
    "classification",
    "decode",
    "detect",
    "detection",
    "evaluations_to",
    "example_inputs",
    "gaussian_baseline",
    "interpolate",
    "kinds_of",
    "latents_of_class",
    "likelihood",
    "logit_constant",
    "predict",
    "reconstruction",
    "reference_tensor",
    "score",
    "solver_errors",
    "stream_in_batches",
    "true_density",
    "uniform_baseline",
]

from iresnet.evaluation.batching import reference_tensor, stream_in_batches
from iresnet.evaluation.classification import (
    Accuracy,
    Calibration,
    CertifiedAccuracy,
    calibration,
    certified_accuracy,
    classification,
)
from iresnet.evaluation.detection import Detection, detect, detection
from iresnet.evaluation.interpolation import KINDS, Interpolation, interpolate, kinds_of
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
    RoundTrip,
    evaluations_to,
    reconstruction,
    solver_errors,
)
from iresnet.evaluation.robustness import (
    Predictions,
    certified_radius,
    logit_constant,
    predict,
)
from iresnet.evaluation.sampling import ClassLatents, decode, latents_of_class
from iresnet.evaluation.scoring import Reference, Scores, example_inputs, score
from iresnet.evaluation.uncertainty import Uncertainty
