"""How the terms add up: eq. 3 (contrast), eq. 7 (reconstruction), eq. 8 (everything).

    L_HLCL = alpha_c L_HCL + beta_c L_LCL
    L_DRC  = alpha_r L_AR + (1 - alpha_r) L_SR
    L      = L_HLCL + L_DRC + L_det

Pure arithmetic on scalars.
"""

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.settings import setting

if TYPE_CHECKING:  # commands that read settings need no torch
    from torch import Tensor

TERMS = ("hcl", "lcl", "ar", "sr", "det")


@dataclass(frozen=True)
class ObjectiveWeights:
    """The paper's weights (Sec. 4.1)."""

    alpha_c: float = setting(0.1, "paper, Sec. 4.1: weight of HCL in eq. 3", low=0)
    beta_c: float = setting(0.05, "paper, Sec. 4.1: weight of LCL in eq. 3", low=0)
    alpha_r: float = setting(0.1, "paper, Sec. 4.1: weight of AR in eq. 7; SR has the rest", low=0, high=1)

    def of(self, term: str) -> float:
        """The factor of one of `TERMS` in eq. 8."""
        factors = {
            "hcl": self.alpha_c,
            "lcl": self.beta_c,
            "ar": self.alpha_r,
            "sr": 1.0 - self.alpha_r,
            "det": 1.0,
        }
        return factors[term]


def total_loss(terms: "Mapping[str, Tensor]", weights: ObjectiveWeights) -> "Tensor":
    """Eq. 8 over the terms that are there (an ablation leaves some out)."""
    return functools.reduce(operator.add, (weights.of(name) * value for name, value in terms.items()))
