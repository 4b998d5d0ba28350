"""How far apart two sets of features are, as torch-fidelity computes it. The features may lie in a file.

Fréchet distance   |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians with the features' means and unbiased
                   covariances (Heusel et al. 2017, arXiv:1706.08500); float64, the root's trace through eigenvalues
kernel distance    squared MMD under ((x.y) / d + 1)^3, unbiased, mean over random subsets (Binkowski et al. 2018,
                   arXiv:1801.01401)

If there are fewer images than features, the covariances are singular; the distance is finite all the same. The Fréchet
distance takes memory for a chunk of images and d x d numbers, the kernel distance for its subsets.
Check: tests/metrics/test_frechet.py, against torch-fidelity, torchmetrics, scipy.linalg.sqrtm and closed forms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ldm_vae.extras import extra
from ldm_vae.metrics.spool import Features, chunks

Points = npt.NDArray[np.floating[Any]]
# torch-fidelity's defaults
SUBSET = 1000  # images
SUBSETS = 100
SEED = 2020  # of the subsets


def frechet_distance(ours: Points, theirs: Points) -> float:
    """The Fréchet distance.

    ours, theirs: (n, d), n at least 2.
    """
    with extra("metrics"):
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    if len(ours) + len(theirs) < ours.shape[1]:
        ours, theirs = _rotated(ours, theirs)
    value: float = fid_statistics_to_metric(_statistics(ours), _statistics(theirs), verbose=False)[KEY_METRIC_FID]
    return value


def kernel_distance(ours: Features, theirs: Features) -> float:
    """The kernel distance. Up to SUBSET images make one subset.

    ours, theirs: (n, d), n at least 2.
    """
    with extra("metrics"):
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    n = len(ours)
    found = kid_features_to_metric(
        torch.from_numpy(ours),
        torch.from_numpy(theirs),
        kid_subsets=SUBSETS if n > SUBSET else 1,
        kid_subset_size=min(n, SUBSET),
        rng_seed=SEED,
        verbose=False,
    )
    value: float = found[KEY_METRIC_KID_MEAN]
    return value


def _rotated(ours: Features, theirs: Features) -> tuple[Points, Points]:
    """The same points in the few dimensions that they span, which changes no distance.

    For three images the eigenvalues of a 6 x 6 matrix are then needed, instead of 512 x 512, where nearly all are 0 up
    to rounding and hard to compute.
    """
    basis, _ = np.linalg.qr(np.concatenate([ours, theirs]).T.astype(np.float64))
    return ours @ basis, theirs @ basis


def _statistics(features: Points) -> dict[str, npt.NDArray[np.float64]]:
    """Mean and unbiased covariance, summed in float64 in two passes, so that nothing cancels."""
    n, d = features.shape
    mean, products = np.zeros(d), np.zeros((d, d))
    for chunk in chunks(features):
        mean += chunk.sum(axis=0, dtype=np.float64) / n
    for chunk in chunks(features):
        centred = chunk.astype(np.float64) - mean
        products += centred.T @ centred
    return {"mu": mean, "sigma": products / (n - 1)}
