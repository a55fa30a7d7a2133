"""Rows into a space, a batch at a time: one atomic batch for each run of rows that are alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

import engram
from engram.cli.output import BadInput
from engram.cli.sources import Row, bad_row


class Ingest:
    """Stores rows, and knows how far it came.

    Parameters
    ----------
    open_space : callable
        Opens or makes the space, given the dimension of the first vector, or None if there was none yet.
    progress : callable
        Told how many rows were stored each time.
    position : Path, optional
        The file that holds the token of the source's session while the source is not done: rows are numbered in it, and
        one that exists says that the source is gone on with.
    """

    def __init__(
        self,
        open_space: Callable[[int | None], engram.Space],
        progress: Callable[[int], None],
        position: Path | None = None,
    ) -> None:
        self._open_space = open_space
        self._progress = progress
        self._position = position
        self._space: engram.Space | None = None
        self._session: engram.Session | None = None
        self.stored = 0
        self.skipped = 0
        self.first_id: int | None = None
        self.last_id: int | None = None

    def run(self, rows: Iterator[Row], batch: int) -> None:
        """Store all rows. A bad one ends it: what stands before it is stored, and the error says how much that is."""
        waiting: list[Row] = []
        try:
            try:
                self._go_on(rows)
                for row in rows:
                    waiting.append(row)
                    if len(waiting) == batch:
                        full, waiting = waiting, []
                        self._store_all(full)
            except BadInput:
                self._store_all(waiting)
                raise
            self._store_all(waiting)
            self._done()
        except BadInput as error:
            raise BadInput(f"{error} (stored before: {self.stored})", **error.fields, stored=self.stored) from None

    def _go_on(self, rows: Iterator[Row]) -> None:
        """Pass over what an earlier run has stored."""
        if self._position is None:
            return
        if self._position.is_dir() or not self._position.parent.is_dir():
            raise BadInput(f"{self._position}: no file, and none can be made there", file=str(self._position))
        if not self._position.exists():
            return
        token = self._position.read_text(encoding="utf-8", errors="replace").strip()
        self._space = self._open_space(None)
        try:
            self._session = self._space.session(resume=token)
        except engram.DataLoss as loss:
            self._session = self._space.session(resume=token, acknowledged=loss.committed)
        except (engram.InvalidArgument, engram.SessionExpired) as error:
            raise BadInput(f"{self._position}: {error} (remove the file to begin anew)") from None
        self.skipped = self._session.committed
        passed = sum(1 for _ in islice(rows, self.skipped))
        if passed < self.skipped:
            raise BadInput(f"{self._position}: {self.skipped} rows are stored, the source has only {passed}")
        self._progress(passed)

    def _done(self) -> None:
        if self._session is not None and self._position is not None:
            self._session.close()
            self._position.unlink()

    def _opened(self, rows: list[Row]) -> engram.Space:
        if self._space is None:
            dim = next((len(row.vector) for row in rows if row.vector is not None), None)
            self._space = self._open_space(dim)
        if self._position is not None and self._session is None:
            self._session = self._space.session()
            # The token is on the disk before the first row can be: no end loses count.
            _write_whole(self._position, self._session.token + "\n")
        return self._space

    def _observe(self, columns: dict[str, Any]) -> engram.BatchAck:
        if self._session is not None:
            return self._session.observe_batch(**columns, sequence=self.skipped + self.stored + 1)
        if self._space is None:
            raise AssertionError("opened before")
        return self._space.observe_batch(**columns)

    def _store_all(self, rows: list[Row]) -> None:
        if rows:
            self._opened(rows)
        for _, alike in groupby(rows, key=lambda row: None if row.vector is None else len(row.vector)):
            for piece in _without_repeated_keys(alike):
                self._store(piece)

    def _store(self, rows: list[Row]) -> None:
        if not rows:
            return
        columns = {
            "texts": [row.text for row in rows],
            "vectors": None if rows[0].vector is None else np.stack([row.vector for row in rows]),
            "metadata": [row.metadata for row in rows],
            "observed_at": [row.observed_at for row in rows],
            "confidence": [row.confidence for row in rows],
            "keys": [row.key for row in rows],
        }
        try:
            ack = self._observe(columns)
        except engram.InvalidArgument as error:
            if error.index is None and len(rows) == 1:
                raise bad_row(rows[0].place, str(error)) from None
            if error.index is None:
                half = len(rows) // 2
                self._store(rows[:half])
                self._store(rows[half:])
                return
            self._store(rows[: error.index])
            raise bad_row(rows[error.index].place, str(error)) from None
        self.stored += len(rows)
        self.first_id = self.first_id or int(ack.memory_ids[0])
        self.last_id = int(ack.memory_ids[-1])
        self._progress(len(rows))


def _write_whole(path: Path, text: str) -> None:
    """Write a new file that has all of the text whenever it is there. Raises FileExistsError."""
    part = path.with_name(path.name + ".engram-part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        raise FileExistsError(path)
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _without_repeated_keys(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut where a key comes again: of one batch only one memory could have it."""
    piece: list[Row] = []
    seen: set[str] = set()
    for row in rows:
        if row.key is not None and row.key in seen:
            yield piece
            piece, seen = [], set()
        piece.append(row)
        if row.key is not None:
            seen.add(row.key)
    yield piece
