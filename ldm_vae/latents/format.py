"""The format of latents on disk: a tar for each shard of images, of the same name, and `latents.json` about them.

    OUT/000000.tar           per sample KEY.moments.npy (2c, h, w), mean then log-variance; or KEY.mode.npy,
                             KEY.sample.npy (c, h, w); float16, raw, so that a scale can be measured later;
                             with `mirrored` also KEY.mirrored.moments.npy, of the mirrored image;
                             then all other fields of the sample
    OUT/records/000000.json  what is in that shard, and digests of it and of what it was made from; written after the
                             shard, as the sign that it is finished
    OUT/records/.*.lock      empty; locked by the one process that is writing that file
    OUT/latents.json         the job; once every shard is finished also scale, statistics and counts

Plain webdataset reads the tars. Nothing here depends on when or in how many processes it was written. Folders of
version 1 are read, and finished in their own version (`first_version.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from ldm_vae.choices import LatentKind, ResizeFilter
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.latents.fields import FieldCounts
from ldm_vae.metrics.latent import StoredMoments
from ldm_vae.networks.network import Channels
from ldm_vae.recipe import Config, Positive

LATENTS_FILE, RECORDS_FOLDER = "latents.json", "records"
ENCODED = ("*.tar", LATENTS_FILE, f"{RECORDS_FOLDER}/*.json", f"{RECORDS_FOLDER}/.*.lock")  # all that encode writes
NotNegative = Annotated[int, Field(ge=0)]


class LatentJob(Config):
    """Everything that decides the bytes of latent shards."""

    source: str | None = None
    """Where the shards of images were: an absolute path, or a URL without passwords; null in version 1."""

    codec: str
    """sha256 of the codec's weights."""

    encoder: str | None = None
    """sha256 of the weights on which latents depend; null in version 1."""

    factor: Positive
    """Pixels per latent position, along each side."""

    channels: Channels
    """Channels of a latent; moments have twice as many."""

    logvar_range: tuple[FiniteFloat, FiniteFloat] | None
    """[low, high]: the log-variances of moments are clamped to it before they are used; null where the codec has no
    Gaussian posterior."""

    latents: LatentKind
    """What is stored of the posterior."""

    mirrored: bool
    """Whether the latent of the mirrored image is stored too."""

    image_channels: Channels
    """Channels of the images."""

    resize: Positive | None
    """Short side of the images in pixels; null leaves them as they are."""

    resize_filter: ResizeFilter = "bicubic"
    """How images are resampled."""

    crop: Positive | None
    """Side in pixels of the square cut from the middle; null cuts nothing."""

    multiple: Positive
    """Images are padded to a multiple of so many pixels, on the right and below, by reflection."""

    precision: str
    """In which the network ran: float32 or bfloat16."""

    batch: Positive
    """Images at a time; another number rounds differently."""

    keep_image: bool
    """Whether the image itself is carried along."""

    seed: int
    """Seed of the samples from the posterior; each sample is a function of seed and key."""

    @model_validator(mode="after")
    def _check_range(self) -> LatentJob:
        if self.logvar_range is not None and self.logvar_range[0] >= self.logvar_range[1]:
            raise ValueError("logvar_range is [low, high] with low < high")
        if self.latents == "moments" and self.logvar_range is None:
            raise ValueError("moments need a logvar_range")
        return self

    @property
    def image(self) -> ImageConfig:
        """What is done to an image before it is encoded."""
        return ImageConfig(
            channels=self.image_channels,
            resize=self.resize,
            resize_filter=self.resize_filter,
            crop=self.crop,
            crop_mode="center",
        )


class WrittenFile(Config):
    """A file as it was written."""

    bytes: NotNegative
    """Its size."""

    sha256: str
    """Of its content."""


class Arithmetic(Config):
    """With what a shard was computed. Another one gives latents that differ by rounding."""

    precision: str
    """In which the network ran."""

    device: str
    """Type of the device, such as cpu or cuda."""

    torch: str
    """Version of PyTorch."""

    float32: str | None = None
    """How float32 was computed: exact, without TF32; null where an earlier version left it to PyTorch."""


class ShardRecord(Config):
    """What is in one finished shard. Version 1 lacks source, tar and arithmetic."""

    version: Literal[1, 2] = 1

    name: str
    """Name of the tar."""

    bytes: NotNegative
    """Size in bytes of the shard of images that it was made from."""

    source: str | None = None
    """Digest of the samples that it was made from (`source.py`)."""

    tar: WrittenFile | None = None
    """The tar."""

    arithmetic: Arithmetic | None = None
    """With what it was computed."""

    keys: tuple[str, ...]
    """Keys of the samples, in the order of the tar."""

    sizes: tuple[tuple[Positive, Positive], ...]
    """(height, width) of each image before padding, in pixels."""

    quarantined: tuple[tuple[str, str], ...]
    """(key, reason) of samples that were left out."""

    fields: FieldCounts | None = None
    """How many samples have a class, cls, and a text, txt; null where an earlier version did not count."""

    statistics: StoredMoments
    """Moments of all its latents."""

    @model_validator(mode="after")
    def _check_lengths(self) -> ShardRecord:
        if len(self.keys) != len(self.sizes) or len(self.statistics.mean) != len(self.statistics.square):
            raise ValueError("keys and sizes, or mean and square, have not one length")
        return self


class StoredArray(Config):
    """An array that is stored with every sample."""

    content: LatentKind
    """What of the posterior it holds."""

    dtype: Literal["float16"]
    """Type of its values."""

    channels: Channels
    """Length of its first dimension; height and width follow."""


class FinishedShard(Config):
    """What latents.json holds of a finished shard: a constant number of bytes."""

    samples: NotNegative
    """Samples in it."""

    left_out: NotNegative
    """Samples of the shard of images that it lacks; the record has their names and the reasons."""

    record: str | None
    """sha256 of the record's file; null in version 1."""


class LatentsFile(Config):
    """latents.json."""

    format: Literal["ldm_vae.latents"] = "ldm_vae.latents"

    version: Literal[1, 2] = 2

    complete: bool = False
    """Whether every shard is finished; until then samples, scale, statistics, shards are empty."""

    arrays: dict[str, StoredArray] = Field(default_factory=dict)
    """What is stored with every sample, by the name that follows its key."""

    job: LatentJob

    samples: NotNegative = 0
    """Samples in all shards."""

    fields: FieldCounts | None = None
    """How many of them have a class, cls, and a text, txt; null where an earlier version did not count."""

    scale: dict[str, Any] | None = None
    """Keys of a diffusers config: the scale of the codec; null where nobody had measured it."""

    statistics: dict[str, Any] | None = None
    """Statistics of everything encoded, gathered in float64."""

    shards: dict[str, FinishedShard] = Field(default_factory=dict)
    """Name of a tar -> what it holds. A name has no folders."""

    sizes: dict[str, dict[str, tuple[Positive, Positive]]] = Field(default_factory=dict, exclude=True)
    """Of version 1 alone: name of a tar -> key -> (height, width) in pixels. Later versions have it in the records."""

    @model_validator(mode="after")
    def _check_names(self) -> LatentsFile:
        if other := next((name for name in self.shards if Path(name).name != name), None):
            raise ValueError(f"{other!r} is no name of a shard")
        return self


def stored_arrays(job: LatentJob) -> dict[str, StoredArray]:
    """What a job stores with every sample."""
    channels = job.channels * (2 if job.latents == "moments" else 1)
    names = [f"{job.latents}.npy", *[f"mirrored.{job.latents}.npy"] * job.mirrored]
    return {name: StoredArray(content=job.latents, dtype="float16", channels=channels) for name in names}
