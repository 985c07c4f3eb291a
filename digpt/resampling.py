"""The bootstrap that metrics share: one set of resampled images for every column of numbers about them.

    resamples = Resamples(50_000, seed=0)
    low, high = resamples.interval(resamples.means(correct))

Figures that are to be compared, such as the 75 cells behind one mCE or two models on one set, take their resamples
from one object, so that an image counts equally often in all of them and their errors move together.

Shapes: N images, M clusters of images, K columns, R resamples.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOOTSTRAP_RESAMPLES = 1000
_CHUNK_DRAWS = 4_000_000  # resampled indices held at a time: 32 MB
_KEEP_BYTES = 128 * 2**20  # a larger count matrix is drawn anew each time it is needed


class Resamples:
    """How often each image counts in each of R bootstrap resamples, drawn when first needed.

    M clusters are drawn M times with replacement, in float64 arithmetic throughout: sums of 0/1 values are exact. The
    draws depend on ``seed``, M and R alone. Up to 128 MiB of counts (one byte each, 50 MB for 50,000 images and 1,000
    resamples) stay in memory; beyond that they are drawn again by every call, with the same result.
    """

    def __init__(self, images: int | ArrayLike, *, seed: int = 0, n_resamples: int = BOOTSTRAP_RESAMPLES) -> None:
        """Describe the resamples; nothing is drawn yet.

        Args:
            images: their number N, when each stands for itself; or N cluster ids (numbers or strings), when images of
                one id are not independent and are resampled together.
            seed: of numpy's default generator.
            n_resamples: R.

        Raises:
            ValueError: no images or no resamples, or ids that are no flat list.
        """
        if isinstance(images, (int, np.integer)):
            self.n_images = self.n_clusters = int(images)
            self._cluster_of: NDArray[np.intp] | None = None
        else:
            ids = np.asarray(images)
            if ids.ndim != 1:
                raise ValueError(f"Cluster ids must be a flat list, one per image, not of shape {ids.shape}.")
            distinct, self._cluster_of = np.unique(ids, return_inverse=True)
            self.n_images, self.n_clusters = len(ids), len(distinct)
        if self.n_images < 1 or n_resamples < 1:
            raise ValueError(f"A bootstrap needs images and resamples, got {self.n_images} and {n_resamples}.")
        self.seed, self.n_resamples = seed, n_resamples
        self._counts: NDArray[np.uint8] | None = None
        self._sizes: NDArray[np.float64] | None = None

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Number of images in each resample, ``[R]``: N in all of them unless clusters differ in size."""
        if self._cluster_of is None:
            return np.full(self.n_resamples, float(self.n_images))
        if self._sizes is None:
            self._sizes = self.sums(np.ones(self.n_images))
        return self._sizes

    def sums(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the sum of ``values`` over each resample, float64: ``[R]`` for ``[N]``, ``[R, K]`` for ``[N, K]``.

        Raises:
            ValueError: another number of images than here, or values that are NaN or infinite.
        """
        data = np.asarray(values, dtype=np.float64)
        if data.ndim not in (1, 2) or len(data) != self.n_images:
            raise ValueError(f"Values of {self.n_images} images are [N] or [N, K], got shape {data.shape}.")
        if not np.isfinite(data).all():
            raise ValueError("Values to resample hold NaN or infinity; leave out the images that have no value.")
        per_cluster = self._per_cluster(data)
        sums = np.empty((self.n_resamples, *data.shape[1:]))
        for rows, counts in self._blocks():
            sums[rows] = counts.astype(np.float64) @ per_cluster
        return sums

    def means(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the mean of ``values`` per image of each resample; shapes and errors as `sums`.

        With clusters it is the resample's sum over its number of images, which differs from resample to resample.
        """
        sums = self.sums(values)
        return sums / (self.sizes if sums.ndim == 1 else self.sizes[:, None])

    @staticmethod
    def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval ``(low, high)`` of one statistic's values ``[R]``, one per resample.

        Raises:
            ValueError: samples of another shape or with NaN, or a level outside 0..1.
        """
        array = np.asarray(samples, dtype=np.float64)
        if array.ndim != 1 or not array.size or np.isnan(array).any():
            raise ValueError(f"An interval needs a flat list of numbers without NaN, got shape {array.shape}.")
        if not 0 < level < 1:
            raise ValueError(f"The level of an interval lies between 0 and 1, got {level}.")
        low, high = np.quantile(array, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _per_cluster(self, data: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the values ``[N]`` or ``[N, K]`` up within clusters: ``[M]`` or ``[M, K]``."""
        if self._cluster_of is None:
            return data
        columns = [np.bincount(self._cluster_of, column) for column in np.atleast_2d(data.T)]
        return np.stack(columns, axis=1).reshape(-1, *data.shape[1:]).astype(np.float64)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Yield the count matrix ``[R, M]`` in blocks of rows; the size of a block does not change the draws."""
        total, clusters = self.n_resamples, self.n_clusters
        step = max(1, _CHUNK_DRAWS // clusters)
        blocks = [slice(start, min(start + step, total)) for start in range(0, total, step)]
        if self._counts is not None:
            for rows in blocks:
                yield rows, self._counts[rows]
            return
        kept = np.empty((total, clusters), dtype=np.uint8) if total * clusters <= _KEEP_BYTES else None
        generator = np.random.default_rng(self.seed)
        for rows in blocks:
            draws = generator.integers(0, clusters, size=(rows.stop - rows.start, clusters))
            # One byte is enough: a cluster drawn more than 255 times has a probability below 1/256!.
            counts = np.empty(draws.shape, dtype=np.uint8)
            for row, drawn in zip(counts, draws, strict=True):
                row[:] = np.bincount(drawn, minlength=clusters)
            if kept is not None:
                kept[rows] = counts
            yield rows, counts
        self._counts = kept
