"""Measured ratios: ours beside what a user would choose instead, on the same files, in one run.

    python -m tests.bench [--only NAME …] [--full] [--out DIR] [--install]

A comparison is a module with one function `compare(scale, folder) -> Iterator[Contest]`, named in `__main__`. It makes
its inputs below `folder`, which is removed afterwards, and hands its sides to `contest.alternate`, ours first:

    yield alternate(
        "1 M samples shuffled", unit="samples/s", amount=1_000_000, rounds=scale.rounds,
        sides={"ours": action, "RandomSampler": other_action, "cleanlab": Missing("not installed: ...")},
        targets=[Target("≥ 10 × RandomSampler", against=("RandomSampler",), at_least=10)],
    )

A side is a function without arguments. It is timed from outside, or, where it returns a `Pass`, by what it says itself:
a `Peer` does, which is a process of its own that stays alive from round to round.

Peers that fit our pins are in pyproject's extra `bench`. The others (img2dataset wants an old pyarrow, for example) are
packages beside ours: `peers/NAME.txt` lists exactly what they need other than we, `--install` puts it into
`.bench/NAME`, and only their process sees that folder first. What is not installed is named in the table. FFCV is built
from source, which needs OpenCV's and libturbojpeg's headers (Debian: libopencv-dev, libturbojpeg0-dev).
"""
