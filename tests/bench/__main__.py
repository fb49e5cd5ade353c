"""`make bench`: runs every comparison and prints a table of ratios."""

from __future__ import annotations

import platform

import torch

from tests.bench import loading, pi_forward, planning


def main() -> None:
    """Prints a Markdown table."""
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| comparison | ours | theirs | ratio of times |\n|---|---|---|---|")
    for module in (planning, loading, pi_forward):
        for comparison in module.compare():
            print(
                f"| {comparison.title} | {1000 * comparison.ours:.2f} ms | {1000 * comparison.theirs:.2f} ms "
                f"| {comparison.ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
