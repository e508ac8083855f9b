"""Analysis: how well estimators, bounds, inverses and latents of a trained model keep what they promise."""

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
    "examples",
    "rescaled",
    "solver_curves",
]

from iresnet.analysis.inverse import InverseAnalysis, analyze_inverse, rescaled, solver_curves
from iresnet.analysis.latent import LatentAnalysis, analyze_latent
from iresnet.analysis.lipschitz import LipschitzAnalysis, analyze_lipschitz
from iresnet.analysis.logdet import LogDetAnalysis, analyze_logdet
from iresnet.analysis.visits import bijection_of, examples
