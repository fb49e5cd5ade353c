"""Writes a Parquet file in pieces, with the bytes that it has when it is written at once."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP: Final = 1 << 20               # rows; what Arrow writes a large table in by itself


class WholeRowGroups:
    """Rows that come in pieces, with the bytes of `schema.write_table` for the whole."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer, self._waiting = writer, writer.schema.empty_table()

    def write(self, table: pa.Table) -> None:
        """Adds rows; they are written as soon as they make whole row groups."""
        self._waiting = pa.concat_tables([self._waiting, table])
        while len(self._waiting) > ROW_GROUP:
            self._writer.write_table(self._waiting.slice(0, ROW_GROUP).combine_chunks())
            self._waiting = self._waiting.slice(ROW_GROUP)

    def finish(self) -> None:
        """Writes what is left."""
        self._writer.write_table(self._waiting.combine_chunks())
