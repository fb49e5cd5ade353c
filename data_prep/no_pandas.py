"""Keeps Arrow from importing pandas, which nothing here needs."""

from __future__ import annotations


class NoPandas:
    """Arrow imports pandas where it is installed, a quarter of a second in each process, only to see no frames.

    To be put first into `sys.meta_path`.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Says that pandas is not there."""
        if name == "pandas":
            raise ModuleNotFoundError("this process works without pandas", name=name)
