"""LatentDataset: reads latent shards, and gives scaled latents for training diffusion models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.decode import read_npy
from ldm_vae.data.images.pixels import BrokenImage
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.tar import BrokenTar, Member, members
from ldm_vae.errors import UserError
from ldm_vae.latents.fields import FIELDS, MISSING, read_field
from ldm_vae.latents.folder import read_latents_file, read_record, record_path
from ldm_vae.latents.format import LATENTS_FILE, LatentsFile
from ldm_vae.noise import rng


class Decoding(Protocol):
    """What the latents will be decoded with, such as LatentCodec: hashes that they may name it by, and its scale."""

    scale: LatentScale | None

    @property
    def hashes(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class _Sample:
    key: str
    size: tuple[int, int]  # (height, width) of the image in pixels
    fields: dict[str, tuple[int, int]]  # name -> offset and size of the content in the tar


class LatentDataset(Dataset[dict[str, Any]]):
    """Item i: {"latent": (c, h, w) float32, "key": str}, and of "cls" (int) and "txt" (str) those of `fields`.

    Every item of a data set has the same fields, so that items make batches. A sample that lacks a field that was asked
    for has cls -1 and txt "". A cls that is no integer counts as none. Bytes of a txt that are no UTF-8 become U+FFFD,
    which is warned of once; `LatentDataset.fields` gives them as they are. The latents of a data set may differ in h
    and w: `latents.buckets.BucketBatchSampler` makes batches of one size.

    Every random choice depends on (seed, epoch, i) alone, so it is the same in any worker and in any order. Each worker
    opens files and reads headers when it first needs them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        codec: Decoding | str | None = None,
        sample: bool = True,
        mirror: bool = True,
        scale: LatentScale | None = None,
        fields: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Opens a folder of latents.

        folder: what `ldm-vae encode` wrote.
        codec: the codec that will decode the latents, or a hash of it; latents of another encoder are refused.
        sample: draw a latent from stored moments; otherwise it is their mean.
        mirror: take the latent of the mirrored image half of the time, if it is stored.
        scale: replaces the scale in latents.json, and is needed where neither that nor the codec has one.
        fields: which of cls and txt the items have; None for those that all samples have. One that no sample has is
            refused.
        seed: decides the draws and the mirroring.
        """
        self.folder = Path(folder)
        self.info: LatentsFile = read_latents_file(self.folder)
        if not self.info.complete:
            raise UserError(
                f"{folder} is unfinished", "run the same `ldm-vae encode` again, which does what is missing"
            )
        if codec is not None:
            hashes = (codec,) if isinstance(codec, str) else codec.hashes
            refuse_other_codec(self.info, hashes, str(folder))
        job = self.info.job
        self.scale = scale or self._agreed_scale(None if codec is None or isinstance(codec, str) else codec.scale)
        self.sample = sample and job.latents == "moments"
        self.mirror = mirror and job.mirrored
        self.seed = seed
        self._field = f"{job.latents}.npy"
        self._names = [name for name, shard in self.info.shards.items() if shard.samples]
        self._ends = np.cumsum([self.info.shards[name].samples for name in self._names])
        if self.info.samples != sum(shard.samples for shard in self.info.shards.values()):
            what = f"{self.folder / LATENTS_FILE} is damaged (its shards do not have {self.info.samples} samples)"
            raise UserError(what, "run the same `ldm-vae encode` again, which counts them")
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # persistent workers see it change
        self._reader = RangeReader()
        self._shards: dict[int, list[_Sample]] = {}
        self._given = self._choose_fields(fields)
        self._told = False  # of a class or text that could not be read

    def _choose_fields(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        """The fields of every item. Raises UserError for one that is unknown, or that no sample has."""
        if unknown := [name for name in asked or () if name not in FIELDS]:
            what = f"fields={list(asked or ())!r}: {unknown[0]!r} is not known"
            raise UserError(what, f"choose from {', '.join(FIELDS)}; .fields(i) gives all others as bytes")
        if asked is not None and not asked:
            return ()
        totals = self.info.fields or self._count_fields()
        if asked is not None:
            for name in asked:
                if not totals[name]:
                    raise UserError(f"no sample of {self.folder} has {name}", f"leave it out of fields={list(asked)!r}")
            return tuple(name for name in FIELDS if name in asked)
        for name in FIELDS:
            if 0 < totals[name] < len(self):
                what = f"{self.folder}: {totals[name]} of {len(self)} samples have {name}, so no item gets it"
                warn_once(f'{what}: fields=["{name}"] gives {MISSING[name]!r} for the others')
        return tuple(name for name in FIELDS if totals[name] == len(self))

    def _count_fields(self) -> dict[str, int]:
        """How many samples have each field, by the headers of the tars. Raises UserError for a damaged one."""
        samples = [sample for shard in range(len(self._names)) for sample in self._scan(shard)]
        return {name: sum(name in sample.fields for sample in samples) for name in FIELDS}

    def _agreed_scale(self, decoded_with: LatentScale | None) -> LatentScale | None:
        """The scale of latents.json and of the codec that will decode the latents; None where both have none.

        Raises UserError where they differ, since then what a denoiser learns is not what is decoded.
        """
        path, stored = self.folder / LATENTS_FILE, None
        if self.info.scale is not None:
            stored = LatentScale.from_config(self.info.scale, self.info.job.channels, str(path))
        if stored is not None and decoded_with is not None and not stored.is_close(decoded_with):
            what = f"{path} scales latents by {stored.in_words()}, and the codec by {decoded_with.in_words()}"
            raise UserError(what, "decode with the codec they were encoded with, or say which with scale=")
        return stored or decoded_with

    def __len__(self) -> int:
        return self.info.samples

    def set_epoch(self, epoch: int) -> None:
        """Changes the draws and the mirroring, also in workers that are running."""
        self._epoch.fill_(epoch)

    def __getitem__(self, item: int) -> dict[str, Any]:
        if self.scale is None:
            what = f"the latents in {self.folder} have no scale, because nobody had measured their codec"
            raise UserError(what, "run `ldm-vae stats MODEL SHARDS --write` and give codec=, or give scale=")
        shard, place = self._place(item)
        generator = rng(self.seed, "latent", int(self._epoch), item % len(self))
        mirrored = self.mirror and bool(generator.integers(2))
        z = torch.from_numpy(self._array(shard, place, ("mirrored." if mirrored else "") + self._field)).float()
        if self.info.job.latents == "moments":
            z, logvar = z.chunk(2)
            if self.sample:
                noise = torch.from_numpy(generator.standard_normal(tuple(z.shape), dtype=np.float32))
                bounds = self.info.job.logvar_range
                assert bounds is not None  # a job of moments has one
                z = z + (0.5 * logvar.clamp(*bounds)).exp() * noise
        found: dict[str, Any] = {"latent": self.scale.apply(z), "key": place.key}
        for name in self._given:
            found[name] = MISSING[name]
            if name in place.fields:
                found[name], problem = read_field(name, self._bytes(shard, place, name))
                if problem and not self._told:
                    self._told = True
                    warn_once(f"{self.folder}: {name} of {place.key} {problem}; others may be so, too")
        return found

    def raw(self, item: int) -> Tensor:
        """(c, h, w) float32: the posterior's mean, or the latent that is stored instead; unscaled, not mirrored."""
        shard, place = self._place(item)
        return torch.from_numpy(self._array(shard, place, self._field)).float()[: self.info.job.channels]

    def size(self, item: int) -> tuple[int, int]:
        """(height, width) in pixels of the image before it was padded."""
        return self._place(item)[1].size

    def sizes(self) -> NDArray[np.int64]:
        """(samples, 2) Height and width of all latents, in order. Reads all records."""
        multiple, factor = self.info.job.multiple, self.info.job.factor
        found = [size for shard in range(len(self._names)) for size in self._sizes(shard).values()]
        pixels = np.array(found, dtype=np.int64).reshape(-1, 2)
        return -(-pixels // multiple) * (multiple // factor)

    @property
    def shard_ends(self) -> NDArray[np.int64]:
        """(shards,) The number after the last item of each tar."""
        return self._ends

    def key(self, item: int) -> str:
        return self._place(item)[1].key

    def shard(self, item: int) -> str:
        """Name of the tar that holds it, which is also the name of the shard of images."""
        return self._names[self._place(item)[0]]

    def fields(self, item: int) -> dict[str, bytes]:
        """Everything stored with a sample: the name that follows its key -> content."""
        shard, place = self._place(item)
        return {name: self._bytes(shard, place, name) for name in place.fields}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_shards": {}}  # for workers that are spawned

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reader = RangeReader()

    def _place(self, item: int) -> tuple[int, _Sample]:
        if not -len(self) <= item < len(self):
            raise IndexError(item)
        item %= len(self)
        shard = int(np.searchsorted(self._ends, item, side="right"))
        if shard not in self._shards:
            self._shards[shard] = self._scan(shard)
        samples = self._shards[shard]
        return shard, samples[item - int(self._ends[shard]) + len(samples)]

    def _scan(self, shard: int) -> list[_Sample]:
        name = self._names[shard]
        path = str(self.folder / name)
        try:
            samples = list(_group(members(path, self._reader), self._sizes(shard), self._field))
        except (BrokenTar, Missing) as error:
            raise self._damaged(shard, str(error)) from None
        if len(samples) != (expected := self.info.shards[name].samples):
            raise self._damaged(shard, f"{len(samples)} samples, not {expected}")
        return samples

    def _sizes(self, shard: int) -> dict[str, tuple[int, int]]:
        """Key -> (height, width) of the images in a shard, in the order of the tar."""
        name = self._names[shard]
        if self.info.version == 1:
            if name not in self.info.sizes:
                raise self._damaged(shard, f"{LATENTS_FILE} has no sizes of its images")
            return self.info.sizes[name]
        record = read_record(self.folder, name, self.info.shards[name].record)
        if record is None:
            raise self._damaged(shard, "its record is missing or is another one")
        return dict(zip(record.keys, record.sizes, strict=True))

    def _array(self, shard: int, place: _Sample, field: str) -> np.ndarray[Any, np.dtype[np.float16]]:
        """What is stored in a field: (2c, h, w) for moments, else (c, h, w)."""
        if field not in place.fields:
            raise self._damaged(shard, f"{place.key} has no {field}")
        try:
            array = read_npy(self._bytes(shard, place, field))
        except BrokenImage as error:
            raise self._damaged(shard, f"{place.key}.{field}: {error.reason}") from None
        channels = self.info.job.channels * (2 if self.info.job.latents == "moments" else 1)
        if array.ndim != 3 or array.shape[0] != channels or array.size == 0 or array.dtype != np.float16:
            given = f"{array.dtype} of shape {array.shape}"
            raise self._damaged(shard, f"{place.key}.{field} is {given}, not float16 ({channels}, h, w)")
        return array

    def _damaged(self, shard: int, reason: str) -> UserError:
        path = self.folder / self._names[shard]
        remedy = f"remove it and {record_path(self.folder, path.name)}, then run `ldm-vae encode` again"
        return UserError(f"{path} is damaged ({reason})", remedy)

    def _bytes(self, shard: int, place: _Sample, field: str) -> bytes:
        try:
            return self._reader.read(str(self.folder / self._names[shard]), *place.fields[field])
        except Missing as error:
            raise self._damaged(shard, str(error)) from None


def refuse_other_codec(info: LatentsFile, hashes: Sequence[str], name: str) -> None:
    """Raises UserError if the latents are not of a codec with one of these hashes: of all weights, or the encoder's."""
    if not {info.job.codec, info.job.encoder} & {*hashes}:
        what = f"the latents in {name} are of another codec ({info.job.codec[:12]}, not {hashes[0][:12]})"
        raise UserError(what, "decode them with the codec they were made with, or encode again")


def _group(found: Iterable[Member], sizes: Mapping[str, tuple[int, int]], first: str) -> Iterator[_Sample]:
    """Groups members into samples. Keys may hold dots, so a sample is recognised by its first member, KEY.`first`."""
    sample: _Sample | None = None
    coming = iter(sizes)
    following = next(coming, None)
    for member in found:
        if following is not None and member.name == f"{following}.{first}":
            if sample is not None:
                yield sample
            sample = _Sample(following, sizes[following], {})
            following = next(coming, None)
        if sample is not None:
            sample.fields[member.name[len(sample.key) + 1 :]] = (member.offset, member.size)
    if sample is not None:
        yield sample
