"""What Python's garbage collector looks through while a server serves.

Libraries and models are some hundred thousand objects that live as long as the process. A full collection looks at
each of them with Python's lock held, in the middle of requests; frozen objects are left out of it. Without this a
server of the bundled model answered half as many requests.
"""

from __future__ import annotations

import gc

# Objects made since, at which a collection follows (Python's own: 700): a server's requests leave none in cycles.
THRESHOLDS = (20_000, 20, 20)


def settle() -> None:
    """Take what lives now for permanent, after a last look for what does not: call it when models came or went."""
    gc.unfreeze()  # of a model that went, what only a collection finds may be among the frozen
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
