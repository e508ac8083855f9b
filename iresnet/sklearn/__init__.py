"""Estimators of scikit-learn, by invertible residual networks: densities, outlier detectors and classifiers."""

__all__ = ["FlowDensity", "FlowOutlierDetector", "InvertibleClassifier"]

try:
    import sklearn as _  # noqa: F401 (the package, not this folder)
except ImportError as error:
    raise ImportError("iresnet.sklearn needs scikit-learn: pip install 'iresnet[sklearn]'") from error

from iresnet.sklearn.certified import InvertibleClassifier
from iresnet.sklearn.densities import FlowDensity, FlowOutlierDetector
