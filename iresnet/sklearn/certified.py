"""Classifier whose predictions come with a radius in which they are proved not to change."""

__all__ = ["InvertibleClassifier"]

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from iresnet.classifiers import Classifier
from iresnet.errors import DataError
from iresnet.evaluation import certified_radius, logit_constant
from iresnet.sklearn.fitting import FlowEstimator, validated, varying_columns


class InvertibleClassifier(ClassifierMixin, FlowEstimator):
    r"""Classifier of the rows of a table, by invertible residual blocks and a linear head, with certified radii.

    Columns are standardized; those that are constant are left out. A smaller ``coeff`` and fewer blocks give larger
    radii, and less accuracy.

    Args:
        blocks: and all further arguments: see :class:`~iresnet.sklearn.FlowDensity`.

    Attributes:
        model_: the :class:`~iresnet.Classifier` of standardized rows, sealed, in float64.
        classes_: labels of the classes, sorted.
        varying_: which columns are not constant, (D,); the model sees these alone.
        mean_: of those columns.
        scale_: their standard deviations.
        lipschitz_: proved bound of the Lipschitz constant of differences between logits, in the Euclidean norm of the
            units of X.
        n_steps_: steps of the training.
        n_features_in_: D.
        feature_names_in_: names of the columns, where these have names.

    Raises:
        IResNetError: a ValueError, for a single class, and parameters that cannot be used.

    Reference:
        Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep Neural Networks, Tsuzuku,
        Sato and Sugiyama 2018, https://arxiv.org/abs/1802.04034

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> y = np.where(X[:, 0] > 0, "right", "left")
        >>> classifier = InvertibleClassifier(blocks=1, hidden=8, epochs=20, random_state=0).fit(X, y)
        >>> classifier.predict([[2.0, 0.0], [-2.0, 0.0]]).tolist()
        ['right', 'left']
        >>> bool(classifier.certified_radius([[2.0, 0.0]])[0] < 2)  # the distance to the other class
        True
    """

    model_: Classifier

    def __init__(
        self,
        *,
        blocks: int = 4,
        hidden: int = 64,
        coeff: float = 0.9,
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

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on rows, (N, D), and their classes, (N,).

        Args:
            X: the rows, of real numbers without gaps.
            y: labels of any kind.
        """
        x, y = validated(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"a classifier needs at least 2 classes, got 1 class: {self.classes_[0]}")
        self.varying_ = varying_columns(x)
        self._fit_model(x[:, self.varying_], labels, tuple(map(str, self.classes_)))
        rows = torch.zeros(1, len(self.mean_), dtype=torch.float64)
        self.lipschitz_ = logit_constant(self.model_, rows) / float(self.scale_.min())
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N,)
        """Return the most probable class of each row."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N, n_classes)
        """Return the probability of each class, in the order of ``classes_``."""
        return torch.from_numpy(self._logits(X)).softmax(dim=1).numpy()

    def certified_radius(self, X: ArrayLike) -> np.ndarray:  # (N, D) -> (N,)
        r"""Return a radius around each row in which its predicted class is proved not to change.

        .. math:: r = \frac{f_1 - f_2}{\sqrt{2} \, L}

        with the two largest logits and a bound L, ``lipschitz_``, of the Lipschitz constant of all logits: no change of
        Euclidean norm below r, in the units of X, changes the class. As L holds for the column of the smallest scale,
        the same is proved of the larger set of changes d with ``norm(d / scale_) < r / min(scale_)``: columns of
        different units are better standardized first, which makes both sets one. Constant columns may change at will.

        Returns:
            Radii, 0 where two classes are equally probable.
        """
        return certified_radius(torch.from_numpy(self._logits(X)), self.lipschitz_).numpy()

    def _logits(self, X: ArrayLike) -> np.ndarray:  # (N, n_classes)
        x = self._checked(X)[:, self.varying_]
        return self._evaluate(self.model_, self._standardized(x))
