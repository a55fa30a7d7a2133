"""A writer that resumes: attaches by its token, asks for ids of what it said before, and goes on until it is killed.

    python speaker.py DIRECTORY TOKEN_FILE SEED

Now and then it forgets some of what it said, by an id or by a condition. It prints a line for each thing it is told:
`told FIRST ID ID …`, `again FIRST ID ID …`, `forgot FIRST LAST`, and `forgets FIRST LAST` before it asks (those of the
sequences are meant that `forgotten` names). It is killed at any moment.
"""

import random
import sys
from pathlib import Path

import engram

LIMITS = {
    "partitions": 1,
    "segment_bytes_first": 65_536,
    "segment_bytes_max": 131_072,
    "seal_space_bytes": 65_536,
    "seal_own_file_bytes_min": 16_384,
    "checkpoint_log_bytes": 131_072,
    "merge_files": 2,
}


def text(sequence: int) -> str:
    return f"{sequence} " + "." * (sequence * 7 % 200)


def forgotten(first: int, last: int) -> list[int]:
    """Return the sequences that a forget of these means."""
    return [first] if first == last else [n for n in range(first, last + 1) if n % 3 == 0]


def forget(space: engram.Space, first: int, last: int, memory_id: int) -> None:
    """Forget them: the one by its id, more by a condition."""
    tell("forgets", first, [last])
    if first == last:
        space.forget(memory_id)
    else:
        space.forget(where={"third": True, "n": {"$gte": first, "$lte": last}})
    tell("forgot", first, [last])


def tell(word: str, first: int, ids: list[int]) -> None:
    sys.stdout.write(f"{word} {first} {' '.join(map(str, ids))}\n")
    sys.stdout.flush()


def main(directory: str, token_file: str, seed: int) -> None:
    rng = random.Random(seed)
    engine = engram.open(directory, limits=LIMITS)
    space = engine.space("s", dim=2)
    path = Path(token_file)
    if path.exists() and path.read_text():
        session = space.session(resume=path.read_text())
    else:
        session = space.session()
        path.write_text(session.token)
    while True:
        committed = session.committed
        if rng.random() < 0.3 and committed:
            first = max(1, committed - rng.randrange(200))
            count = min(40, committed + 1 - first)
            word = "again"
        else:
            # Some of it may have been said before.
            first = max(1, committed + 1 - rng.choice((0, 0, 0, 3)))
            count = rng.choice((1, 5, 40))
            word = "told"
        said = range(first, first + count)
        metadata = [{"n": n, "third": n % 3 == 0} for n in said]
        texts = [text(n) for n in said]
        ids = session.observe_batch(texts=texts, metadata=metadata, sequence=first).memory_ids.tolist()
        tell(word, first, ids)
        if rng.random() < 0.1:
            forget(space, first, rng.choice((first, first + count - 1)), ids[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
