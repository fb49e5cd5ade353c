"""A folder per class, with or without a folder per split above them: SOURCE/[split/]class/.../image."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_prep.sources import INPUTS_SCHEMA, Listing, SplitMap, read_class_names, sort_classes
from data_prep.sources.apart import keep_apart
from data_prep.sources.files import FileReader, text
from twostage.data.schema import NO_LABEL, SPLITS, InputError, nearest

OPTIONS = ("split_map", "class_names", "allow_outside", "drop_leaks")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Has no options of its own."""
    group.description = (
        "SOURCE/class/.../image, all of them noisy_train; or SOURCE/split/class/.../image, where the names of the "
        "splits are the usual ones, or those of --split-map. Keys are paths relative to SOURCE. Files and folders "
        "whose name begins with a dot (a bin, thumbnails) are rejected."
    )


def list_inputs(source: Path, args: argparse.Namespace) -> Listing:
    """See `Source.list_inputs`."""
    if not source.is_dir():
        raise InputError(f"{source}: {'not a folder' if source.exists() else 'no such folder'}")
    root = os.fsencode(source)
    reader = FileReader(source, bool(args.allow_outside))
    split_map = SplitMap(args.split_map)
    splits = _split_folders(root, source, split_map, reader)
    folders: dict[bytes, tuple[int, str]] = {}          # class folder relative to root -> split, class name
    for above, split in splits.items():
        for folder in _folders(root + b"/" + above, reader):
            folders[_join(above, folder)] = (split, text(folder))
    found = sort_classes(name for _, name in folders.values())
    if not found:
        layout = "SOURCE/train/cat/1.jpg" if splits.keys() != {b""} else "SOURCE/cat/1.jpg"
        problem = f"{source} has no class folders; images are expected as in {layout}"
        if splits.keys() != {b""}:
            problem += " (if the folders there are classes and not splits: --split-map none)"
        raise InputError(problem)
    class_names = found if args.class_names is None else read_class_names(args.class_names)
    for name in found:
        if name not in class_names:
            raise InputError(f"{source}: class folder {name!r} is not in --class-names; {nearest(name, class_names)}")
    if len(class_names) < 2:
        raise InputError(
            f"{source} has only one class folder, {found[0]!r}: a classifier needs two classes at least. Images are "
            "expected as in SOURCE/cat/1.jpg, or SOURCE/train/cat/1.jpg"
        )
    numbers = {folder: (split, class_names.index(name)) for folder, (split, name) in folders.items()}
    notes = tuple(f"folder {text(name)!r} is the split {SPLITS[split]}" for name, split in splits.items() if name)
    return Listing(
        class_names=class_names,
        batches=_batches(root, splits, numbers, reader),
        reader=keep_apart(reader, _batches(root, splits, numbers, reader), args) if args.drop_leaks else reader,
        notes=notes,
    )


def _split_folders(root: bytes, source: Path, split_map: SplitMap, reader: FileReader) -> dict[bytes, int]:
    """Split number by folder name; {b"": noisy_train} if the classes are at the top."""
    names = _folders(root, reader)
    found = {name: split_map.number(text(name)) for name in names}
    known = {name: split for name, split in found.items() if split is not None}
    if not known:
        return {b"": SPLITS.index("noisy_train")}
    unknown = [name for name in names if name not in known]
    if unknown:
        splits = ", ".join(repr(text(name)) for name in known)
        name = text(unknown[0])
        raise InputError(
            f"{source}: {splits} look like splits, {name!r} does not ({nearest(name, split_map.known())}). Say which "
            f"split it is by --split-map {name}=SPLIT, or --split-map none if all these folders are classes"
        )
    return known


def _folders(path: bytes, reader: FileReader) -> list[bytes]:
    """Sorted names of the folders in a folder, but hidden ones, and links that lead outside."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if _is_folder(entry, reader) and not entry.name.startswith(b".")]
    return sorted(names)


def _is_folder(entry: os.DirEntry[bytes], reader: FileReader) -> bool:
    return _leads_to_folder(entry) and (not entry.is_symlink() or reader.may_enter(entry.path))


def _leads_to_folder(entry: os.DirEntry[bytes]) -> bool:
    """False too of a link that leads to itself, or to where nobody may look: it is rejected when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _batches(
    root: bytes, splits: dict[bytes, int], classes: dict[bytes, tuple[int, int]], reader: FileReader
) -> Iterator[pa.RecordBatch]:
    """Every file below the root: those in class folders with their label, the others as rejected."""
    train = SPLITS.index("noisy_train")
    for folder in sorted({b"", *splits, *classes}):
        split, label = classes.get(folder, (splits.get(folder, train), NO_LABEL))
        below = splits.keys() | classes.keys()
        for places, reason, detail in _files(root, folder, reader, set() if folder in classes else below):
            if reason in (None, "hidden") and folder not in classes:
                reason, detail = "no_class", "not in a class folder"
            yield _batch(places, split, label, reason, detail)


def _batch(places: list[bytes], split: int, label: int, reason: str | None, detail: str | None) -> pa.RecordBatch:
    """Files that have all in common but their names; whole columns at once, as there may be millions of them."""
    try:
        keys = b"\0".join(places).decode().split("\0")          # the one byte that no file name has
    except UnicodeDecodeError:
        keys = [text(place) for place in places]
    same = [pa.repeat(pa.scalar(v, f.type), len(places))
            for v, f in zip((split, label, reason, detail), list(INPUTS_SCHEMA)[2:], strict=True)]
    return pa.record_batch([pa.array(keys), pa.array(places, pa.binary()), *same], schema=INPUTS_SCHEMA)


def _files(
    root: bytes, folder: bytes, reader: FileReader, leave_out: set[bytes]
) -> Iterator[tuple[list[bytes], str | None, str | None]]:
    """Paths relative to the root of all files below a folder, in order, and why some are not worth reading."""
    stack = [(folder, frozenset[bytes]())]
    while stack:
        path, above = stack.pop()
        real = os.path.realpath(root + b"/" + path)
        if real in above:
            yield [path], "unreadable", "a link to a folder that this one lies in"
            continue
        files, folders = [], []
        try:
            with os.scandir(real) as entries:
                for entry in entries:               # not a folder: a file, or a link to one, or nowhere; reading tells
                    if _leads_to_folder(entry):
                        folders.append((entry.name, _is_folder(entry, reader)))
                    else:
                        files.append(entry.name)
        except PermissionError as error:
            yield [path], "unreadable", f"a folder: {error.strerror}"
            continue
        prefix = path + b"/" if path else b""
        hidden = [name for name in files if b"/." in b"/" + prefix + name]
        if hidden:
            yield [prefix + name for name in sorted(hidden)], "hidden", "a name in its path begins with a dot"
        if shown := sorted(set(files).difference(hidden)):
            yield [prefix + name for name in shown], None, None
        deeper = []
        for name, may_enter in sorted(folders):
            if not may_enter:
                yield [prefix + name], "outside", "a link to a folder outside of SOURCE"
            elif prefix + name not in leave_out:
                deeper.append((prefix + name, above | {real}))
        stack += reversed(deeper)


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name
