"""Clothing1M (Xiao et al., CVPR 2015): a user's own copy, in any of the layouts that are around."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.check import Limits
from data_prep.inputs import some
from data_prep.sources import BATCH, HELD_OUT, INPUTS_SCHEMA, Listing, read_class_names, read_names_file
from data_prep.sources.apart import ApartReader
from data_prep.sources.clothing1m_lists import (
    CLASS_NAMES,
    LABELS,
    LISTS,
    PREFIX,
    Ints,
    KeyList,
    labels_by_split,
    notes_on,
    overlaps,
    own_column,
    read_key_list,
    read_label_file,
    survey,
    to_text,
)
from data_prep.sources.files import FileReader
from twostage.data.schema import SPLITS, InputError

OPTIONS = ("class_names", "allow_outside", "image_root", "drop_leaks")
LIST_FOLDERS: Final = (".", "annotations", "annotation", "label", "labels")
IMAGE_FOLDERS: Final = ("images", ".", "images/images", "image")
NAMES_FILE: Final = "category_names_eng.txt"
PROBES: Final = 200             # images that are looked for to find out where they lie


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the options that only this source has."""
    group.description = (
        "SOURCE holds noisy_train_key_list.txt, clean_{train,val,test}_key_list.txt, noisy_label_kv.txt and "
        "clean_label_kv.txt, there or in annotations/ or label/, and the images in images/0/00/... or 0/00/... "
        "(--image-root, if they lie elsewhere). Training images are those of the lists, not of the label files, which "
        "hold test images too. Both labels of images that have two are kept, as the label columns noisy and clean. An "
        "image of training in val or test too, by name or by bytes, is an error, unless --drop-leaks leaves it out."
    )


def list_inputs(source: Path, args: argparse.Namespace) -> Listing:
    """See `Source.list_inputs`."""
    if not source.is_dir():
        raise InputError(f"{source}: {'not a folder' if source.exists() else 'no such folder'}")
    files = find_lists(source)
    class_names = _class_names(files.get(NAMES_FILE), args.class_names)
    keys = {split: read_key_list(files[name]) for split, name in LISTS.items()}
    label_files = {column: read_label_file(files[name], len(class_names)) for column, name in LABELS.items()}
    labels = labels_by_split(keys, label_files)
    lines = survey(labels, label_files, class_names) + notes_on(keys, labels, label_files)
    leaks = overlaps(keys)
    problems = [_describe(keys[split], also) for split, also in leaks.items() if (also >= 0).any()]
    if problems and not args.drop_leaks:
        print("\n".join(lines))
        raise InputError(
            f"{source}: a leak between splits: {'; '.join(problems)}. Mend the lists, or give --drop-leaks: it keeps "
            f"such an image in the later split only ({', '.join(SPLITS)})"
        )
    lines += [f"{problem}; dropped here" for problem in problems]
    folder, text = find_images(source, files[LISTS["test"]].parent, args.image_root, keys)
    lines += text
    reader = FileReader(folder, bool(args.allow_outside))
    places = [
        (key.removeprefix(PREFIX), key.decode("utf-8", "backslashreplace"), SPLITS.index(split))
        for split in HELD_OUT
        for key in keys[split].keys.filter(pa.array(leaks[split] < 0)).to_pylist()
    ]
    limits = Limits(max_bytes=args.max_bytes, max_pixels=args.max_pixels, decode=False)
    apart = ApartReader(reader, places, limits, bool(args.drop_leaks))
    lines.append(f"{apart.num_hashed} images of val and test are hashed, and kept apart from training by their bytes")
    return Listing(
        class_names=class_names,
        batches=_batches(keys, labels, leaks),
        reader=apart,
        label_columns=tuple(LABELS),
        notes=tuple(lines),
    )


def find_lists(source: Path) -> dict[str, Path]:
    """The path of each list by its name.

    Raises:
        InputError: one is missing, or there are two different ones of one name.
    """
    found: dict[str, Path] = {}
    wanted = (*LISTS.values(), *LABELS.values(), NAMES_FILE)
    for name in wanted:
        paths = [path for folder in LIST_FOLDERS if (path := source / folder / name).is_file()]
        if len({path.read_bytes() for path in paths}) > 1:
            raise InputError(f"{' and '.join(map(str, paths))} differ: keep one of them")
        if paths:
            found[name] = paths[0]
    missing = [name for name in wanted if name not in found and name != NAMES_FILE]
    if missing:
        raise InputError(
            f"{source}: no {', '.join(missing)}, neither there nor in {', '.join(LIST_FOLDERS[1:])}/. These lists are "
            "Clothing1M's annotations, which its authors give to those who ask for them"
        )
    return found


def find_images(
    source: Path, lists: Path, image_root: Path | None, keys: Mapping[str, KeyList]
) -> tuple[Path, list[str]]:
    """The folder that holds 0/00/..., and lines for people.

    Raises:
        InputError: none of the images that were looked for is there.
    """
    every = [key for file in keys.values() for key in _evenly(file.keys, PROBES // len(keys))]
    tops = [source, lists, lists.parent] if image_root is None else [image_root]
    candidates = list(dict.fromkeys(top / name for top in tops for name in IMAGE_FOLDERS))
    names = [os.fsdecode(key.removeprefix(PREFIX)) for key in every]
    hits = {folder: sum((folder / name).exists() for name in names) for folder in candidates if folder.is_dir()}
    best = max(hits, key=lambda folder: hits[folder], default=source)
    if not hits.get(best):
        packed = [path for top in tops for path in (*top.glob("*.tar"), *top.glob("images/*.tar"))]
        hint = f". {some([str(path) for path in packed])} look packed: unpack them first" if packed else ""
        raise InputError(
            f"none of {len(names)} images that were looked for is there, {names[0]} for one; in: "
            f"{', '.join(map(str, candidates))}{hint}. --image-root says where they lie"
        )
    lines = [f"images are in {best}"]
    if hits[best] < len(names):
        lines.append(f"of {len(names)} images that were looked for, {len(names) - hits[best]} are missing there")
    return best, lines


def _class_names(path: Path | None, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return read_class_names(given)
    return CLASS_NAMES if path is None else read_names_file(path, str(path))


def _describe(file: KeyList, also: Ints) -> str:
    rows = np.flatnonzero(also >= 0)
    keys = to_text(file.keys.take(pa.array(rows))).to_pylist()
    examples = [f"{key} ({LISTS[SPLITS[also[row]]]})" for key, row in zip(keys[:3], rows[:3], strict=True)]
    return f"{len(rows)} keys of {file.path.name} are in another list too: {some(examples, len(rows))}"


def _evenly(keys: pa.Array, count: int) -> list[bytes]:
    rows = np.unique(np.linspace(0, len(keys) - 1, count).astype(np.int64))
    found: list[bytes] = keys.take(pa.array(rows)).to_pylist()
    return found


def _batches(
    keys: Mapping[str, KeyList], labels: Mapping[str, Mapping[str, Ints]], leaks: Mapping[str, Ints]
) -> Iterator[pa.RecordBatch]:
    """Rows of INPUTS_SCHEMA and the label columns, split after split, in the lists' order."""
    schema = INPUTS_SCHEMA
    for column in LABELS:
        schema = schema.append(pa.field(column, pa.int64(), nullable=False))
    lists = pa.array([LISTS[split] for split in SPLITS], pa.string())
    for split, file in keys.items():
        for begin in range(0, len(file.keys), BATCH):
            rows = slice(begin, begin + BATCH)
            part = file.keys[rows]
            text = to_text(part)
            also = leaks[split][rows]
            leaking = pa.array(also >= 0)
            other = lists.take(pa.array(also, mask=also < 0))
            columns = {column: pa.array(values[rows]) for column, values in labels[split].items()}
            arrays = [
                # in the other list, the same image has this key already: here it needs another one
                pc.if_else(leaking, pc.binary_join_element_wise(f"{file.path.name}: ", text, ""), text),
                pa.array([key.removeprefix(PREFIX) for key in part.to_pylist()], pa.binary()),
                pa.array(np.full(len(part), SPLITS.index(split), np.int8)),
                columns[own_column(split)],
                pc.if_else(leaking, "leak", None).cast(pa.string()),
                pc.binary_join_element_wise("also in ", other, ""),
                *columns.values(),
            ]
            yield pa.record_batch(arrays, schema=schema)
