"""A miniature of Clothing1M in its official layout, made of real photographs, with everything in it that goes wrong.

3,781 photographs of clothes (CC0) in 10 classes; 15 % of those for training become clean_train, the others
noisy_train, where 39 % of the labels are those of a class that is easily mistaken. Also a script:

    python -m tests.data_prep.clothing1m_mini OUT [--num N] [--whole]
    python -m data_prep build OUT data/mini --format clothing1m --drop-leaks
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.data_prep.photos import png_bomb
from tests.data_prep.shared_data import SHARED

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
MISTAKEN = dict(zip(CLASSES, ("skirt", "shoes", "shirt", "longsleeve", "shorts", "t-shirt", "hat", "pants", "dress",
                              "longsleeve"), strict=True))
NOISE = 0.39
CLEAN_SHARE = 0.15      # of the photographs for training
BOTH_SHARE = 0.5        # of the clean splits, images with a noisy label too


class Labels(NamedTuple):
    """What a sample of the dataset should have; None: no label."""

    split: str
    given: int | None
    noisy: int | None
    clean: int | None


@dataclass
class Mini:
    """What was written, and what should become of it."""

    root: Path
    expected: dict[str, Labels] = field(default_factory=dict)
    """by key: the samples of the dataset"""
    rejected: dict[str, str] = field(default_factory=dict)
    """by key: why not"""
    truth: dict[str, int] = field(default_factory=dict)
    """by key: the real class of every sample"""
    lists: dict[str, list[str]] = field(default_factory=dict)
    """by split: keys as they stand in its list"""
    noisy: dict[str, int] = field(default_factory=dict)
    clean: dict[str, int] = field(default_factory=dict)
    """by key: the label files"""
    num_duplicates: int = 0
    """samples of training with the bytes of another one there"""
    _count: int = 0

    def new_key(self) -> str:
        """A key as the official ones are: with a comma in it."""
        n, self._count = self._count, self._count + 1
        return f"images/{n % 10}/{n // 10 % 100:02d}/{n * 7919 % 10**9},{n * 104729 % 10**10}.jpg"

    def add(self, split: str, data: bytes, noisy: int | None, clean: int | None) -> str:
        """Writes an image and its labels; returns its key."""
        key = self.new_key()
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.lists.setdefault(split, []).append(key)
        for labels, label in ((self.noisy, noisy), (self.clean, clean)):
            if label is not None:
                labels[key] = label
        self.expected[key] = Labels(split, noisy if split == "noisy_train" else clean, noisy, clean)
        return key

    def reject(self, key: str, reason: str) -> None:
        """Says that an image will not be in the dataset."""
        del self.expected[key]
        self.rejected[key] = reason


def write_mini(root: Path, num: int | None = None, planted: bool = True, rng_seed: int = 0) -> Mini:
    """Writes the miniature into `root`, a new folder.

    Args:
        num: so many photographs, taken evenly from all; default: all of them.
        planted: with leaks, duplicates, corrupt files, a bomb, missing files, repeated lines.
    """
    rng = np.random.default_rng(rng_seed)
    mini = Mini(root)
    root.mkdir(parents=True)
    for split, label, data in _photographs(num, rng):
        if split == "train":
            split = "clean_train" if rng.random() < CLEAN_SHARE else "noisy_train"
        mistaken = CLASSES.index(MISTAKEN[CLASSES[label]])
        noisy = mistaken if rng.random() < NOISE else label
        if split == "noisy_train":
            key = mini.add(split, data, noisy, None)
        else:
            key = mini.add(split, data, noisy if rng.random() < BOTH_SHARE else None, label)
        mini.truth[key] = label
    if planted:
        _plant(mini)
    write_lists(mini)
    return mini


def write_lists(mini: Mini) -> None:
    """Writes the annotations as the official ones are: clean lists and names end without a newline."""
    (mini.root / "noisy_train_key_list.txt").write_text("".join(f"{key}\n" for key in mini.lists["noisy_train"]))
    for split in ("clean_train", "val", "test"):
        name = f"clean_{split.removeprefix('clean_')}_key_list.txt"
        (mini.root / name).write_text("\n".join(mini.lists[split]))
    for name, labels in (("noisy", mini.noisy), ("clean", mini.clean)):
        (mini.root / f"{name}_label_kv.txt").write_text("".join(f"{key} {label}\n" for key, label in labels.items()))
    (mini.root / "category_names_eng.txt").write_text("\n".join(CLASSES))


def _plant(mini: Mini) -> None:
    """Everything that goes wrong, a few times each."""
    photos = {split: list(keys) for split, keys in mini.lists.items()}

    def content(split: str, number: int) -> bytes:
        return (mini.root / photos[split][number]).read_bytes()

    def is_leak(split: str, key: str, list_name: str) -> None:
        """The key stands in another split's list as well."""
        mini.lists[split].insert(len(mini.lists[split]) // 2, key)
        mini.rejected[f"{list_name}: {key}"] = "leak"

    noisy_list = "noisy_train_key_list.txt"
    for key in photos["test"][:3] + photos["val"][:2] + photos["clean_train"][:1]:
        is_leak("noisy_train", key, noisy_list)
    is_leak("clean_train", photos["test"][4], "clean_train_key_list.txt")
    is_leak("val", photos["test"][5], "clean_val_key_list.txt")
    for number in range(4):                                         # leaks by bytes, under other names
        mini.reject(mini.add("noisy_train", content("test", 6 + number), 1, None), "leak")
    mini.reject(mini.add("clean_train", content("val", 3), None, 2), "leak")
    mini.reject(mini.add("val", content("test", 10), None, 3), "leak")
    for number in range(5):                                         # harmless: duplicates within training
        key = mini.add("noisy_train", content("noisy_train", number), 4, None)
        mini.truth[key] = mini.truth[photos["noisy_train"][number]]
        mini.num_duplicates += 1
    photo = content("noisy_train", 7)
    for split in ("noisy_train", "noisy_train", "val", "test", "clean_train"):      # corrupt files
        for data, reason in ((photo[: len(photo) * 2 // 3], "truncated"), (b"", "empty"), (b"<html>404", "format"),
                             (png_bomb(), "too_many_pixels")):
            mini.reject(mini.add(split, data, 5, None if split == "noisy_train" else 5), reason)
    for split in ("noisy_train", "noisy_train", "noisy_train", "test"):             # missing files
        key = mini.add(split, b"", 6, 6 if split == "test" else None)
        (mini.root / key).unlink()
        mini.reject(key, "missing")
    for split, labels in (("noisy_train", mini.noisy), ("test", mini.clean)):       # no label
        key = photos[split][-1]
        del labels[key]
        split, _, noisy, clean = mini.expected[key]
        mini.expected[key] = Labels(split, None, *((None, clean) if labels is mini.noisy else (noisy, None)))
    mini.noisy["images/9/99/1,2.jpg"] = 3                           # a label of no image
    mini.lists["noisy_train"] += photos["noisy_train"][10:12]       # lines that repeat a key


def _photographs(num: int | None, rng: np.random.Generator) -> Iterator[tuple[str, int, bytes]]:
    """(train, val or test; class number; file) in a random order."""
    found = []
    for part in ("train", "valtest"):
        path = SHARED / "data" / "clothing" / f"clothing-dataset-small.{part}.tar"
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".jpg"):
                    found.append((path, member.name, member.offset_data, member.size))
    order = rng.permutation(len(found))
    names = {"train": "train", "validation": "val", "test": "test"}
    for row in order if num is None else order[:num]:
        path, name, offset, size = found[row]
        *_, split, class_name, _ = name.split("/")
        with path.open("rb") as file:
            file.seek(offset)
            yield names[split], CLASSES.index(class_name), file.read(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--num", type=int, help="so many photographs (all)")
    parser.add_argument("--whole", action="store_true", help="without anything that is wrong")
    args = parser.parse_args()
    mini = write_mini(args.out, args.num, planted=not args.whole)
    text = io.StringIO()
    for key, label in mini.truth.items():
        text.write(f"{key} {label}\n")
    (args.out / "truth_kv.txt").write_text(text.getvalue())
    print(f"{args.out}: {len(mini.expected)} images that should be taken, {len(mini.rejected)} that should be rejected")


if __name__ == "__main__":
    main()
