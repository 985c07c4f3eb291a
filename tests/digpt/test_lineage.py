"""The tree of models that a model was made with."""

from __future__ import annotations

from typing import Any

from digpt.lineage import MOST_PARENTS, duration, text_of, tree


def test_parents_stand_below_with_what_is_recorded() -> None:
    teacher = {"role": "teacher", "fingerprint": "sha256:t", "command": "python -m <b>", "figures": {"knn": 0.5}}
    page = tree({"role": "mine", "fingerprint": "sha256:m", "steps": 10, "seconds": 61, "parents": [teacher]})
    assert page.index("sha256:m") < page.index("10 steps · 0:01:01") < page.index("<b>teacher</b>")
    assert "python -m &lt;b&gt; · knn 0.5" in page and page.count("<ul") == 2


def test_circles_and_foreign_values_end() -> None:
    circle: dict[str, Any] = {"role": "x", "seconds": 10**400, "command": "y" * 400, "parents": "none"}
    assert "unknown" in tree(circle) and "(400 characters)" in tree(circle)
    circle["parents"] = [circle] * 3
    assert tree(circle).count("<li") <= MOST_PARENTS
    assert text_of(circle) == "dict" and text_of([1, None]) == "[1, null]"
    assert (duration(3661.9), duration(float("nan"))) == ("1:01:01", "unknown")
