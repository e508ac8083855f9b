"""Analysis: how well estimators, bounds, inverses and latents of a trained model keep what they promise."""

__all__ = [
    "InverseAnalysis",
    "LatentAnalysis",
    "LipschitzAnalysis",
    "LogDetAnalysis",
    "analyse_inverse",
    "analyse_latent",
    "analyse_lipschitz",
    "analyse_logdet",
    "bijection_of",
    "examples",
    "rescaled",
    "solver_curves",
]

from iresnet.analysis.inverse import InverseAnalysis, analyse_inverse, rescaled, solver_curves
from iresnet.analysis.latent import LatentAnalysis, analyse_latent
from iresnet.analysis.lipschitz import LipschitzAnalysis, analyse_lipschitz
from iresnet.analysis.logdet import LogDetAnalysis, analyse_logdet
from iresnet.analysis.visits import bijection_of, examples
