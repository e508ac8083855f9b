"""Analysis of trained models: estimators, bounds, inverses and latents against what is exact, proved or claimed."""

__all__ = [
    "InverseAnalysis",
    "LatentAnalysis",
    "LipschitzAnalysis",
    "LogDetAnalysis",
    "analyze_inverse",
    "analyze_latent",
    "analyze_lipschitz",
    "analyze_logdet",
    "bijection_of",
    "dequantized_examples",
    "rescaled",
    "solver_curves",
]

from iresnet.analysis.estimators import LogDetAnalysis, analyze_logdet
from iresnet.analysis.inverses import InverseAnalysis, analyze_inverse, rescaled, solver_curves
from iresnet.analysis.latents import LatentAnalysis, analyze_latent
from iresnet.analysis.reference import bijection_of, dequantized_examples
from iresnet.analysis.spectra import LipschitzAnalysis, analyze_lipschitz
