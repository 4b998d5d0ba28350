"""The Inception network of FID and KID: its weights found, verified and kept.

The weights are TensorFlow's of 2015-12-05 as torch-fidelity converted them; pytorch-fid publishes the same file. They
are looked for in this order: a file given by path; the cache; the copies that torch.hub keeps for torch-fidelity and
pytorch-fid; torch-fidelity's own download. Whatever the source, the file must have the sha256 that is pinned here, and
it is read without running code from a pickle.
"""

from __future__ import annotations

import io
import logging
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.atomic import atomic_file
from ldm_vae.cache import cache_folder, cache_lock
from ldm_vae.errors import UserError
from ldm_vae.extras import extra
from ldm_vae.pretrained.download import Unusable, download_file, read_state, verify

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

logger = logging.getLogger(__name__)

# torch-fidelity's own
URL_INCEPTION_V3 = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_FILE = URL_INCEPTION_V3.rpartition("/")[2]
WEIGHTS_FILE_OF_PYTORCH_FID = "pt_inception-2015-12-05-6726825d.pth"
PATIENCE = 5  # seconds to connect: without a network, an evaluation should soon go on without FID


def inception(path: Path | None = None) -> FeatureExtractorInceptionV3:
    """torch-fidelity's network on the CPU: (B, 3, H, W) uint8 of any size -> a tuple of one, (B, 2048) float32.

    path: the file of weights; None looks for it.
    Raises UserError if the file is another one, or if it can't be downloaded, and MissingExtra without the package.
    """
    with extra("metrics"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    if path is not None and not path.is_file():
        raise UserError(f"Inception weights {path} not found", "name the file, or none to fetch it")
    file = path or _kept() or _fetched()
    try:
        verify(file, WEIGHTS_SHA256)
        state = read_state(file)
    except (Unusable, OSError) as error:
        raise UserError(f"Inception weights {file}: {error}", f"give the file of {URL_INCEPTION_V3}") from error
    # The class runs the code in any pickle it is given. It is given one that is written here, and holds tensors alone.
    harmless = io.BytesIO()
    torch.save(state, harmless)
    harmless.seek(0)
    return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=harmless)


def features_as_pytorch_fid(network: FeatureExtractorInceptionV3, images: Tensor) -> Tensor:
    """What pytorch-fid takes from the same layers: (B, 3, H, W), 0 to 255 -> (B, 2048) float32.

    It resizes by `F.interpolate` and maps to [-1, 1]; torch-fidelity repeats TensorFlow's grid and (x - 128) / 128.
    """
    layers = takewhile(lambda layer: not isinstance(layer, nn.Linear), network.children())  # all before the classes
    small = F.interpolate(images.float() / 255.0, size=(299, 299), mode="bilinear", align_corners=False)
    return nn.Sequential(*layers)(2.0 * small - 1.0).flatten(1)


def _kept() -> Path | None:
    """A whole file of the weights on this machine, if there is one."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    for file in (cache_folder() / WEIGHTS_FILE, hub / WEIGHTS_FILE, hub / WEIGHTS_FILE_OF_PYTORCH_FID):
        if file.is_file():
            try:
                verify(file, WEIGHTS_SHA256)
            except (Unusable, OSError) as error:
                logger.warning("%s is not used: %s", file, error)
            else:
                return file
    return None


def _fetched() -> Path:
    """Downloads the file of the weights to the cache."""
    with cache_lock() as cache:
        if (file := _kept()) is not None:  # another process fetched it while this one waited
            return file
        try:
            with atomic_file(cache / WEIGHTS_FILE) as stage:
                download_file(URL_INCEPTION_V3, WEIGHTS_SHA256, stage, timeout=PATIENCE)
        except Unusable as error:
            remedy = f"name the file by --inception, or copy it to {cache}"
            raise UserError(f"Inception weights can't be fetched ({error})", remedy) from error
    logger.info("Inception weights from %s, kept in %s", URL_INCEPTION_V3, cache)
    return cache / WEIGHTS_FILE
