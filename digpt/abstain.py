"""When "none of these" is the answer: the cosine below which a picture's best label means nothing.

>>> AbstainRule(labels=(3, 1000), cosine=(0.30, 0.40)).threshold(100)  # between the two, by the logarithm of the number
0.36...

The best of many labels that are all wrong has a higher cosine than the best of three (it is a maximum), and a
probability says little of either: softmax gives the best of three wrong labels almost everything. So the threshold is
one on the cosine and grows with the number of labels. It is measured at export (``export/abstain.py``). "None of these"
then is one more label, whose cosine with every picture is the threshold: it wins where no label comes as near, and the
scores of all remain a distribution. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from digpt.errors import CheckpointError

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class AbstainRule:
    """``cosine`` are the thresholds at the numbers of ``labels`` that a picture is classified among, ascending.

    Between these numbers the threshold is linear in the logarithm of the number; beyond them it is that of the nearest.
    """

    labels: tuple[int, ...]
    cosine: tuple[float, ...]

    def threshold(self, labels: int) -> float:
        """The cosine below which the best of so many ``labels`` means nothing."""
        return float(np.interp(np.log(labels), np.log(self.labels), self.cosine))

    def to_dict(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "cosine": list(self.cosine)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AbstainRule:
        """Read what ``to_dict`` gives, among other keys.

        Raises:
            CheckpointError: no thresholds at ascending numbers of labels.
        """
        try:
            rule = cls(tuple(map(int, values["labels"])), tuple(map(float, values["cosine"])))
        except (KeyError, TypeError, ValueError):
            rule = cls((), ())
        ascending = list(rule.labels) == sorted({n for n in rule.labels if n > 0})
        if not rule.labels or len(rule.labels) != len(rule.cosine) or not ascending:
            raise CheckpointError(f"{dict(values)} are no thresholds by the number of labels. Export the model again.")
        return rule
