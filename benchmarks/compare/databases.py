"""Streaming into an embedded database and asking it at the same time, engram beside others in the same run.

    python benchmarks/compare/databases.py [--rows N] [--only NAME] [--json]

Real rows, cosine, k = 10. Batches of 1,000 from Python, one query after each batch; then whatever makes the database
index everything; then 300 queries, one by one. Those are used that are installed: `pip install --group compare`. Each
has its own defaults but M = 16, efConstruction = 64 where it has them; none syncs each batch, engram neither
(`durability="os"`).
"""

import argparse
import contextlib
import importlib.util
import json
import platform
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

import engram
from engram._sample import load_full, load_sample

K = 10
BATCH = 1_000
M = 16
EF_CONSTRUCTION = 64
CUES = 300


class Database(Protocol):
    """What each can do."""

    def add(self, first: int, rows: np.ndarray) -> None: ...

    def ask(self, cue: np.ndarray) -> list[int]: ...

    def finish(self) -> None: ...


class Engram:
    def __init__(self, directory: str, dim: int) -> None:
        self.engine = engram.open(directory, durability="os", limits={"index_graph_rows_min": 0})
        self.space = self.engine.space("s", dim=dim)

    def add(self, first: int, rows: np.ndarray) -> None:
        self.space.observe_batch(vectors=rows)

    def ask(self, cue: np.ndarray) -> list[int]:
        return [hit.memory_id - 1 for hit in self.space.recall(vector=cue, k=K)]

    def finish(self) -> None:
        self.space.wait_absorbed()


class Lancedb:
    def __init__(self, directory: str, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        self.pa = pa
        fields = [pa.field("id", pa.int64()), pa.field("vector", pa.list_(pa.float32(), dim))]
        self.table = lancedb.connect(directory).create_table("t", schema=pa.schema(fields))

    def add(self, first: int, rows: np.ndarray) -> None:
        flat = self.pa.array(rows.ravel())
        columns = [
            self.pa.array(np.arange(first, first + len(rows))),
            self.pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        ]
        self.table.add(self.pa.table(columns, names=["id", "vector"]))

    def ask(self, cue: np.ndarray) -> list[int]:
        found = self.table.search(cue).distance_type("cosine").limit(K).select(["id"]).to_arrow()
        return found["id"].to_pylist()

    def finish(self) -> None:
        self.table.create_index(
            metric="cosine", index_type="IVF_HNSW_SQ", num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION
        )


class Chroma:
    def __init__(self, directory: str, dim: int) -> None:
        import chromadb

        client = chromadb.PersistentClient(directory, chromadb.Settings(anonymized_telemetry=False))
        settings = {"hnsw:space": "cosine", "hnsw:M": M, "hnsw:construction_ef": EF_CONSTRUCTION}
        self.collection = client.create_collection("rows", metadata=settings, embedding_function=None)

    def add(self, first: int, rows: np.ndarray) -> None:
        self.collection.add(ids=[str(first + i) for i in range(len(rows))], embeddings=rows)

    def ask(self, cue: np.ndarray) -> list[int]:
        found = self.collection.query(query_embeddings=cue[None], n_results=K, include=[])
        return [int(one) for one in found["ids"][0]]

    def finish(self) -> None:
        pass


class Zvec:
    def __init__(self, directory: str, dim: int) -> None:
        import zvec

        self.zvec = zvec
        index = zvec.HnswIndexParam(metric_type=zvec.MetricType.COSINE, m=M, ef_construction=EF_CONSTRUCTION)
        vector = zvec.VectorSchema("v", zvec.DataType.VECTOR_FP32, dim, index)
        schema = zvec.CollectionSchema(name="c", vectors=vector)
        self.collection = zvec.create_and_open(f"{directory}/zvec", schema)

    def add(self, first: int, rows: np.ndarray) -> None:
        self.collection.insert([self.zvec.Doc(id=str(first + i), vectors={"v": row}) for i, row in enumerate(rows)])

    def ask(self, cue: np.ndarray) -> list[int]:
        query = self.zvec.Query("v", vector=cue, param=self.zvec.HnswQueryParam(ef=100))
        return [int(doc.id) for doc in self.collection.query(query, topk=K)]

    def finish(self) -> None:
        self.collection.optimize()


class Qdrant:
    def __init__(self, directory: str, dim: int) -> None:
        import qdrant_edge

        self.q = qdrant_edge
        hnsw = qdrant_edge.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=1_000)
        vectors = qdrant_edge.EdgeVectorParams(size=dim, distance=qdrant_edge.Distance.Cosine)
        config = qdrant_edge.EdgeConfig(vectors=vectors, hnsw_config=hnsw)
        self.shard = qdrant_edge.EdgeShard.create(directory, config)

    def add(self, first: int, rows: np.ndarray) -> None:
        points = [self.q.Point(first + i, row.tolist(), {}) for i, row in enumerate(rows)]
        self.shard.update(self.q.UpdateOperation.upsert_points(points))

    def ask(self, cue: np.ndarray) -> list[int]:
        query = self.q.Query.Nearest(cue.tolist())
        return [int(point.id) for point in self.shard.query(self.q.QueryRequest(limit=K, query=query))]

    def finish(self) -> None:
        self.shard.optimize()


ALL: dict[str, tuple[str, Callable[[str, int], Database]]] = {
    "engram": ("engram", Engram),
    "lancedb": ("lancedb", Lancedb),
    "chroma": ("chromadb", Chroma),
    "zvec": ("zvec", Zvec),
    "qdrant-edge": ("qdrant_edge", Qdrant),
}


def exact(rows: np.ndarray, cues: np.ndarray) -> np.ndarray:
    """Return the nearest rows of each cue, in float64."""
    return np.argsort(-(cues.astype(np.float64) @ rows.T.astype(np.float64)), axis=1, kind="stable")[:, :K]


def measure(
    make: Callable[[str, int], Database], rows: np.ndarray, cues: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """Stream, index, ask."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        database = make(directory, rows.shape[1])
        added, asked = 0.0, []
        for turn, first in enumerate(range(0, len(rows), BATCH)):
            begun = time.perf_counter()
            database.add(first, rows[first : first + BATCH])
            middle = time.perf_counter()
            database.ask(cues[turn % len(cues)])
            asked.append(time.perf_counter() - middle)
            added += middle - begun
        begun = time.perf_counter()
        database.finish()
        indexed = added + sum(asked) + time.perf_counter() - begun
        found, times = [], []
        for cue in cues:
            begun = time.perf_counter()
            found.append(database.ask(cue))
            times.append(time.perf_counter() - begun)
        hits = [len(set(one) & set(true)) / K for one, true in zip(found, truth.tolist(), strict=True)]
        return {
            "appended rows/s": len(rows) / added,
            "indexed rows/s": len(rows) / indexed,
            "asked while fed, ms": median(asked[len(asked) // 2 :]) * 1e3,
            "recall": float(np.mean(hits)),
            "queries/s": 1 / median(times),
        }


def main() -> None:
    """Run all that are installed."""
    parser = argparse.ArgumentParser(description="engram beside embedded databases.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sample = load_full() or load_sample()
    rows = sample.vectors[: arguments.rows].astype(np.float32)
    cues = sample.query_vectors[:CUES].astype(np.float32)
    truth = exact(rows, cues)
    figures: dict[str, Any] = {}
    for name, (module, make) in ALL.items():
        if arguments.only in name:
            figures[name] = None
            if importlib.util.find_spec(module):
                with contextlib.suppress(ImportError):
                    figures[name] = measure(make, rows, cues, truth)
    if arguments.json:
        print(json.dumps({"machine": platform.platform(), "rows": len(rows), **figures}))
        return
    names = ["appended rows/s", "indexed rows/s", "asked while fed, ms", "recall", "queries/s"]
    table = Table("", *names, title=f"{len(rows):,} rows, {platform.machine()}")
    for name, line in figures.items():
        cells = (
            ["NOT RUN: not installed"]
            if line is None
            else [f"{line[n]:,.3f}" if n in names[2:4] else f"{line[n]:,.0f}" for n in names]
        )
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
