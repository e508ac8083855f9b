"""Densities and outlier detectors."""

__all__ = ["FlowDensity", "FlowOutlierDetector"]

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Generator

from iresnet.data.preparation import is_discrete
from iresnet.errors import DataError, RecipeError
from iresnet.flows import Flow
from iresnet.sklearn.fitting import FlowEstimator, column_names, validated


class _Density(FlowEstimator):
    """Estimator with a log-density, whose model is a flow."""

    model_: Flow

    def _fit_density(self, X: ArrayLike) -> np.ndarray:  # (N, D)
        """Check rows and train on them; return them as an array."""
        x = validated(self, X, dtype=np.float64, ensure_min_samples=2)
        self._check_density(x)
        self._fit_model(x)
        return x

    def _check_density(self, x: np.ndarray) -> None:  # (N, D)
        """Refuse constant columns, and warn of those whose likelihood has no limit."""
        constant = np.flatnonzero(np.ptp(x, axis=0) == 0)
        if len(constant):
            raise DataError(
                f"columns that are constant in all {len(x)} samples have no density: "
                f"{column_names(self, constant)}; drop them, as sklearn.feature_selection.VarianceThreshold does"
            )
        discrete = np.flatnonzero(is_discrete(torch.tensor(x)).numpy())
        if len(discrete):
            warnings.warn(
                f"columns of integers or few values have no density, and their likelihood no limit: "
                f"{column_names(self, discrete)}; add uniform noise of one step to them",
                stacklevel=4,
            )

    def score_samples(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N,)
        r"""Return the log-density of each row, in nats, in the units of X.

        .. math:: \log p(x) = \log p_{base}(z) + \log|\det dz/dx|

        The log-determinant includes that of the standardization. It is exact up to 128 columns, and beyond that
        estimated to a tolerance with probes that are always the same.
        """
        return self._log_prob(self._checked(X))

    def _log_prob(self, x: np.ndarray) -> np.ndarray:  # (N, D) -> (N,)
        return self._evaluate(self.model_.log_prob, self._standardized(x)) - np.log(self.scale_).sum()


class FlowDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, _Density):
    r"""Density of the rows of a table, by a flow of invertible residual blocks.

    It has the methods of :class:`sklearn.neighbors.KernelDensity`, and is a transformer, as
    :class:`sklearn.preprocessing.QuantileTransformer` is: from rows to latents that are independent standard normal
    where the model is right, and back.

    Args:
        blocks: residual blocks.
        hidden: size of their hidden layers.
        coeff: bound of the Lipschitz constant of each of their layers, in (0, 1).
        epochs: passes over the rows.
        batch_size: rows a step, all when there are fewer.
        learning_rate: of Muon, see ``iresnet train --help``; it falls to 0 towards the last epoch.
        early_stopping: hold rows out, and take the model of their smallest loss.
        validation_fraction: of the rows to hold out.
        patience: validations without a better loss after which the training ends; there is one an epoch, and at most
            some twenty in all.
        max_seconds: end the training after the step during which so much time has passed since ``fit`` began. Then the
            model depends on the speed of the machine.
        options: further changes of the recipe ``uci-density``, as on the command line:
            ``("--model.activation", "elu", "--train.ema", "0.99")``.
        device: ``"auto"``, a GPU when there is one and else the CPU; ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        random_state: of weights, order, probes and held-out rows, and of samples.
        verbose: show a progress bar, on stderr or in a notebook, when above 0.

    Attributes:
        model_: the :class:`~iresnet.Flow` of standardized rows, sealed, in float64.
        mean_: of the columns, (D,).
        scale_: their standard deviations, (D,).
        n_steps_: steps of the training.
        n_features_in_: D.
        feature_names_in_: names of the columns, where these have names.

    Raises:
        IResNetError: a ValueError, for columns that are constant and parameters that cannot be used.

    Reference:
        Residual Flows for Invertible Generative Modeling, Chen et al. 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal([5, 0], [2, 0.1], (200, 2))
        >>> density = FlowDensity(blocks=1, hidden=8, epochs=20, random_state=0).fit(X)
        >>> density.score_samples(X[:3]).shape, density.sample(4).shape
        ((3,), (4, 2))
        >>> bool(abs(density.score(X) - -(np.log(2 * np.pi * np.e) + np.log(2 * 0.1))) < 0.1)  # that of the truth
        True
    """

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: ARG002 (as pipelines ask)
        """Train on rows, (N, D).

        Args:
            X: the rows, of real numbers without gaps.
            y: not used.
        """
        self._fit_density(X)
        return self

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: ARG002 (as pipelines ask)
        """Return the mean log-density of the rows, in nats; searches over parameters maximize it.

        Args:
            X: the rows.
            y: not used.
        """
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:  # (n, D)
        """Draw rows.

        Args:
            n_samples: how many.
            random_state: of the draws; that of the estimator when None.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise RecipeError(f"n_samples must be at least 1, got {n_samples}")
        chosen = self.random_state if random_state is None else random_state
        generator = Generator().manual_seed(int(check_random_state(chosen).randint(2**31 - 1)))
        latents = torch.randn(n_samples, self.n_features_in_, dtype=torch.float64, generator=generator)
        return self._rows(latents.numpy())

    def transform(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N, D)
        """Return the latents of rows, in standard deviations of the base density from its mean."""
        x = self._standardized(self._checked(X))
        mean, std = self._moments()
        return (self._evaluate(self.model_.encode, x) - mean) / std

    def inverse_transform(self, Z: ArrayLike) -> np.ndarray:  # (N, D) -> (N, D)
        """Return the rows whose latents these are, up to a solver's tolerance of some 1e-5 standard deviations."""
        check_is_fitted(self)
        latents: Any = check_array(Z, dtype="float64", input_name="Z")
        if latents.shape[1] != self.n_features_in_:
            raise DataError(f"latents have {self.n_features_in_} columns, got {latents.shape[1]}")
        return self._rows(latents)

    def _rows(self, latents: np.ndarray) -> np.ndarray:
        mean, std = self._moments()
        return self._evaluate(self.model_.decode, mean + std * latents) * self.scale_ + self.mean_

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        mean, std = self.model_.base.moments()
        return mean.cpu().numpy(), std.cpu().numpy()


class FlowOutlierDetector(OutlierMixin, _Density):
    r"""Detector of rows of low density, by a flow of invertible residual blocks.

    It has the methods of :class:`sklearn.covariance.EllipticEnvelope`, whose density is a Gaussian. A row is an outlier
    when its log-density is below a quantile of those of the rows that it was fitted on.

    Args:
        contamination: fraction of the rows given to ``fit`` that are outliers, in (0, 0.5].
        blocks: and all further arguments: see :class:`FlowDensity`.

    Attributes:
        offset_: log-density, in nats, below which a row is an outlier.
        model_: and ``mean_``, ``scale_``, ``n_steps_``, ``n_features_in_``, ``feature_names_in_``: see
            :class:`FlowDensity`.

    Raises:
        IResNetError: a ValueError, for columns that are constant and parameters that cannot be used.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> detector = FlowOutlierDetector(contamination=0.05, blocks=1, hidden=8, epochs=10, random_state=0).fit(X)
        >>> int((detector.predict(X) == -1).sum()), detector.predict([[9.0, -9.0]])
        (10, array([-1]))
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        blocks: int = 8,
        hidden: int = 64,
        coeff: float = 0.97,
        epochs: int = 100,
        batch_size: int = 100,
        learning_rate: float = 0.02,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        max_seconds: float | None = None,
        options: Sequence[str] = (),
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        super().__init__(
            blocks=blocks,
            hidden=hidden,
            coeff=coeff,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            max_seconds=max_seconds,
            options=options,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.contamination = contamination

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: ARG002 (as pipelines ask)
        """Train on rows, (N, D), and take the threshold from them.

        Args:
            X: the rows, of real numbers without gaps, most of them no outliers.
            y: not used.
        """
        if not 0 < self.contamination <= 0.5:
            raise RecipeError(f"contamination must be in (0, 0.5], got {self.contamination}")
        x = self._fit_density(X)
        self.offset_ = float(np.percentile(self._log_prob(x), 100 * self.contamination))
        return self

    def decision_function(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N,)
        """Return the log-density of each row less the threshold, in nats: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N,)
        """Return -1 for outliers and 1 for others."""
        return np.where(self.decision_function(X) < 0, -1, 1)
