"""`ldm-vae shards`: packs a folder of images into shards with an index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_vae.atomic import require_writable_folder
from ldm_vae.cli.summary import DRY_RUN, per_image, say_reasons, say_room, say_row, speed
from ldm_vae.errors import UserError
from ldm_vae.printable import counted, say
from ldm_vae.progress import ProgressMeter
from ldm_vae.quantities import duration, size

if TYPE_CHECKING:
    from ldm_vae.data.shards.pack import Packed, Plan


def shards(
    folder: Annotated[Path, typer.Argument(help="Folder of images; its subfolders are searched, too.")],
    out: Annotated[
        Path, typer.Argument(help="Folder to make, with shards and index.json: the SHARDS of other commands.")
    ],
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images in a tar; the last one has the rest.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the order of the images in the shards.")] = 0,
    classes: Annotated[
        bool | None,
        typer.Option(
            "--classes/--no-classes",
            help="Label each image with its subfolder. Default: if all images lie in subfolders, there are several, "
            "and they do not just count images.",
        ),
    ] = None,
    classes_from: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS",
            help="Label each image with its subfolder, by the numbers that the classes have in these shards, such as "
            "those of training.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Decode every image, label and text, and leave out what is broken."),
    ] = True,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the images. Default: 3, and any of npy and tiff.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="End with exit code 0, not 1, where something broken was left out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be packed; write nothing.")] = False,
) -> None:
    """Pack a folder of images into WebDataset shards with an index.

    Files beside an image that have its name and end in txt, json or cls are packed with it. What is broken is left out,
    and named in OUT/broken.jsonl; the exit code is then 1.
    """
    from ldm_vae.data.shards.pack import pack_folder, plan_packing

    if classes is False and classes_from is not None:
        raise UserError("--no-classes and --classes-from", "give one of the two")
    if dry_run:
        require_writable_folder(out, ())
        plan = plan_packing(folder, seed=seed, classes=classes, classes_from=classes_from)
        _say_dry_run(plan, out, samples_per_shard, verify=verify, channels=channels)
        return
    started = time.monotonic()
    with ProgressMeter("image") as progress:
        packed = pack_folder(
            folder,
            out,
            samples_per_shard=samples_per_shard,
            seed=seed,
            classes=classes,
            classes_from=classes_from,
            verify=verify,
            channels=channels,
            done=progress.advance,
        )
    _say_packed(packed, out, time.monotonic() - started, verify=verify)
    if packed.broken and not skip_broken:
        raise typer.Exit(1)


def _say_packed(packed: Packed, out: Path, seconds: float, *, verify: bool) -> None:
    from ldm_vae.data.shards.pack import BROKEN_FILE

    written = per_image(packed.written, packed.samples)
    shards = counted(packed.shards, "shard")
    say(f"{out}: {counted(packed.samples, 'image')}{_kinds(packed.plan)} in {shards}, {written}")
    _say_found(packed.plan)
    images = packed.samples + len(packed.broken)
    if packed.broken:
        all_of_them = counted(images, "image")
        say(f"left out {len(packed.broken):,} of {all_of_them}, broken, all named in {out / BROKEN_FILE}:")
        say_reasons((broken.url, broken.reason) for broken in packed.broken)
        say("mend or remove them and pack again, or go on without (--skip-broken: exit code 0)")
    how = "read and decoded" if verify else "read, and did not decode,"
    say(f"{how} {speed(images, seconds)}")


def _say_dry_run(plan: Plan, out: Path, samples_per_shard: int, *, verify: bool, channels: int | None) -> None:
    from ldm_vae.data.shards.trial import packed_size, try_packing

    images = len(plan.found.samples)
    files, tars = packed_size(plan, samples_per_shard)
    say(DRY_RUN)
    say_row("found", f"{counted(images, 'image')}{_kinds(plan)}, {per_image(files, images)}")
    _say_found(plan)
    trial = try_packing(plan, verify=verify, channels=channels)
    if verify:
        say_row("broken", f"{len(trial.broken):,} of {counted(trial.tried, 'image')} tried")
        say_reasons((broken.url, broken.reason) for broken in trial.broken)
    say_row("speed", speed(trial.timed, trial.seconds))
    shards = counted(-(-images // samples_per_shard), "shard")
    time_needed = duration(images / trial.timed * trial.seconds)
    say_row("to write", f"{shards}, {size(tars)}, in about {time_needed}")
    say_room(out, tars)


def _kinds(plan: Plan) -> str:
    return f" of {counted(len(names), 'class')}" if (names := plan.classes.names) else ""


def _say_found(plan: Plan) -> None:
    """What there is beside the images, and what becomes of it."""
    found, classes = plan.found, plan.classes
    if classes.numbered is not None:
        say(f"no classes: folders such as {classes.numbered} count images; --classes labels images with them")
    if absent := classes.absent:
        say(f"no image of {counted(len(absent), 'class')}, such as {absent[0]}; the numbers of the others stay")
    if found.renamed:
        say(f"{counted(len(found.renamed), 'name')} with dots inside, now _ there: {found.renamed[0]}")
        say("  (webdataset would cut the key at the first one)")
    if found.parts:
        say(f"packed with the image beside, as no image: {counted(len(found.parts), 'file')} ({found.parts[0]})")
    if found.left_out:
        say(f"left out: {found.left_out}")
