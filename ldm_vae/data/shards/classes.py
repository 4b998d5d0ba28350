"""The classes of a folder of images: which folders are classes, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ldm_vae.data.shards.folder import LISTED, FolderSample
from ldm_vae.documents import DamagedFile, parse_json, read_file
from ldm_vae.errors import UserError

DIGITS, HASH = re.compile("[0-9]+"), re.compile("[0-9a-f]+")
CLASSES_FILE = "classes.json"  # beside the shards: a list of names, by the number in the field cls


@dataclass(frozen=True)
class Classes:
    """The classes of a folder of images.

    names: of each class, by its number; empty without classes.
    absent: those of which the folder has no image.
    numbered: a folder that counts images, and is no class; None if there is none, or if no one asks for classes.
    """

    names: list[str]
    absent: list[str]
    numbered: str | None = None

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each class, by its name."""
        return {name: number for number, name in enumerate(self.names)}


def find_classes(samples: Sequence[FolderSample], asked: bool | None, like: Path | None) -> Classes:
    """The classes of these samples.

    asked: whether the folder at the top that a picture lies in is its class. None decides by what is there: pictures
        are labelled if all lie in such folders, if there are two folders or more, if no picture has a cls file, and if
        the folders do not just count images, as those of img2dataset do.
    like: a folder of shards whose classes these are, with their numbers; pictures are labelled then.
    Raises UserError, which names the first picture, for what has no class; and for folders that `like` does not know.
    """
    if like is not None:
        known = read_classes(like)
        present = set(_class_names(samples, True, "--classes-from"))
        if unknown := sorted(present - set(known)):
            listed = ", ".join(unknown[:LISTED]) + (f" and {len(unknown) - LISTED} more" * (len(unknown) > LISTED))
            kind = "no class" if len(unknown) == 1 else "no classes"
            remedy = "rename or move them, or pack the shards of training with them, too"
            raise UserError(f"{listed}: {kind} of {like / CLASSES_FILE}", remedy)
        return Classes(known, [name for name in known if name not in present])
    names = _class_names(samples, asked, "--classes")
    if asked is None and names and _count_images(samples):
        return Classes([], [], names[0])
    return Classes(names, [])


def label_of(sample: FolderSample, classes: Classes) -> bytes:
    """The content of a sample's field cls."""
    return str(classes.numbers[sample.key.split("/")[0]]).encode()


def read_classes(folder: Path) -> list[str]:
    """The names in the classes.json of a folder of shards. Raises UserError without one."""
    path = folder / CLASSES_FILE
    remedy = "give a folder that `ldm-vae shards` made of a folder with a subfolder for each class"
    try:
        names = parse_json(read_file(path, remedy), str(path), remedy)
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CLASSES_FILE}", remedy) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DamagedFile(f"{path} is no list of different names", remedy)
    return names


def _class_names(samples: Sequence[FolderSample], classes: bool | None, option: str) -> list[str]:
    """Sorted names of the folders that the samples lie in; empty if they are not labels.

    option: what a person gave who asked for classes, for the message.
    """
    if classes is False:
        return []
    outside = next((sample for sample in samples if "/" not in sample.key), None)
    labelled = next((sample for sample in samples if "cls" in sample.files), None)
    if classes:
        for sample, reason in ((outside, "lies in no folder of a class"), (labelled, "has a cls file already")):
            if sample is not None:
                path = next(iter(sample.files.values()))
                raise UserError(f"{path} {reason}", f"move it, or leave {option} out")
    names = sorted({sample.key.split("/")[0] for sample in samples})
    obvious = outside is None and labelled is None and len(names) > 1
    return names if classes or obvious else []


def _count_images(samples: Sequence[FolderSample]) -> bool:
    """Whether the folders hold so many images each, and are no classes.

    Their names are numbers (or digits of a hash) of one length, and so are those of the pictures. Either the name of
    each picture begins with that of its folder (`00012/000120345.jpg` by img2dataset, `3f/3f09ab.jpg`), or counts on
    from it (`01000/01999.png`).
    """
    folders: dict[str, list[str]] = {}
    for sample in samples:
        folder, *_, name = sample.key.split("/")
        folders.setdefault(folder, []).append(name)
    pairs = [(folder, name) for folder, names in folders.items() for name in names]
    lengths = {(len(folder), len(name)) for folder, name in pairs}
    width, longer = min(lengths)
    if len(lengths) > 1 or width < 2 or not all(HASH.fullmatch(folder + name) for folder, name in pairs):
        return False
    if longer > width + 1:
        return all(name.startswith(folder) for folder, name in pairs)
    if longer != width or not all(DIGITS.fullmatch(folder + name) for folder, name in pairs):
        return False
    bounds = zip(sorted(folders), [*sorted(folders)[1:], "9" * width], strict=True)
    return all(first <= name <= end for first, end in bounds for name in folders[first])
