"""Measuring a model: each evaluator yields numbers, each command prints them and writes ``results.json``."""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"digpt's package `evaluate` has no {name!r}. If Hugging Face's `evaluate` is meant: the two share a name; "
        "give each an environment of its own, and run outside this checkout."
    )
