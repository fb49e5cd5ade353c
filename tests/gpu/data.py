"""Part: a dataset of photo-like JPEGs of 256 × 256 pixels, made on the spot by `data_prep synth` and `build`."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.gpu.part import Part, Row


def main() -> None:
    """Makes `dataset` in the work folder."""
    part = Part("data")
    number, size = (96, 64) if part.toy else (20_480, 256)
    photos = part.work / "photos"
    data_prep = [sys.executable, "-m", "data_prep"]

    def run(*arguments: str) -> Row:
        subprocess.run([*data_prep, *arguments], check=True)
        return {"images": number}

    part.do(f"synth, {size} px", lambda: run("synth", str(photos), "--num", str(number), "--size", str(size)))
    build = ["build", str(photos), str(part.dataset), "--format", "folder", "--workers", str(os.cpu_count() or 2)]
    part.do("build, full check", lambda: run(*build, "--split-map", "none"))


if __name__ == "__main__":
    main()
