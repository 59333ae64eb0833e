"""The two-component Gaussian mixture over perturbations' mean effects: one component has an impact, the other none.

The impact component is the one whose mean lies further from "no effect". The official code takes the first component
for it, whichever that is, so its answers may be the wrong way round.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImpactMixture:
    """A fitted mixture.

    Attributes
    ----------
    fitted
        scikit-learn's model.
    impact, other
        Which of its components is which.
    """

    fitted: Any
    impact: int
    other: int

    @classmethod
    def fit(cls, mean_g: Array, no_effect: float, tolerance: float, subject: str) -> "ImpactMixture":
        """Fit the mixture as the official statistics do (scikit-learn's defaults, random state 0).

        Parameters
        ----------
        mean_g
            Mean effect of each perturbation, in a fixed order (the initialisation depends on it).
        no_effect
            Effect of a perturbation that does nothing.
        tolerance
            Where the fit stops. scikit-learn's 1e-3, the official one, may stop far from the optimum.
        subject
            What an error message calls the screen.

        Raises
        ------
        InputError
            Fewer than two different means.
        """
        from sklearn.mixture import GaussianMixture

        if len(np.unique(mean_g)) < 2:
            fix = "Screen more genes, or lower --min-detections."
            found = f"{len(mean_g)} perturbations with {len(np.unique(mean_g))} different means"
            raise InputError(subject, "a mixture of two needs perturbations that differ in effect", found, fix)
        fitted = GaussianMixture(n_components=2, random_state=0, tol=tolerance, max_iter=10_000)
        fitted.fit(mean_g[:, None])
        far = np.abs(fitted.means_[:, 0] - no_effect)
        impact = int(np.argmax(far))
        return cls(fitted, impact, 1 - impact)

    def has_impact(self, value_n: Array) -> NDArray[np.int64]:
        """Return 1 for values of the impact component, else 0.

        Beyond the mean of a component, on the side away from the other, a value belongs to it, whatever the densities
        say there; between the means the likelier component is taken (official rule).
        """
        if not len(value_n):
            return np.empty(0, np.int64)
        means = self.fitted.means_[:, 0]
        direction = np.sign(means[self.impact] - means[self.other]) or 1.0
        likelier = self.fitted.predict(value_n[:, None]) == self.impact
        beyond_impact = direction * (value_n - means[self.impact]) > 0
        beyond_other = direction * (value_n - means[self.other]) < 0
        return np.where(beyond_other, False, beyond_impact | likelier).astype(np.int64)

    def notes(self) -> dict[str, Any]:
        """Describe the fit for the manifest."""
        order = [self.impact, self.other]
        return {
            name: dict(zip(("impact", "no impact"), (float(v) for v in values.reshape(2)[order]), strict=True))
            for name, values in (
                ("mean", self.fitted.means_),
                ("variance", self.fitted.covariances_),
                ("weight", self.fitted.weights_),
            )
        } | {"iterations": int(self.fitted.n_iter_), "converged": bool(self.fitted.converged_)}
