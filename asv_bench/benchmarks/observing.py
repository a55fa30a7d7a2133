"""How fast rows go in, acknowledged and recallable, and what that writes."""

from . import OnDisk, fill, rows, sample

SINGLES = 200


class Observe(OnDisk):
    """Batches of 256 and single observations, in each mode."""

    params = ("memory", "os", "sync")
    param_names = ("durability",)
    number = 1
    rounds = 1
    repeat = 5
    warmup_time = 0

    def setup(self, durability: str) -> None:
        self.durability = durability
        super().setup()

    def time_batches_of_256(self, durability: str) -> None:
        fill(self.space, texts=False)

    def time_batches_of_256_with_texts(self, durability: str) -> None:
        fill(self.space)

    def time_200_single(self, durability: str) -> None:
        real = sample()
        for text, vector in zip(real.texts[:SINGLES], real.vectors[:SINGLES], strict=True):
            self.space.observe(text, vector=vector)


class Written(OnDisk):
    """Bytes written for each byte given: log, sealed files, merges and checkpoints; zero-filled segments apart."""

    def setup(self) -> None:
        super().setup()
        fill(self.space)
        self.engine.checkpoint()
        self.given = sample().vectors[: rows()].nbytes + sum(len(text.encode()) for text in sample().texts[: rows()])

    def track_bytes_written_per_byte(self) -> float:
        stats = self.engine.stats()
        kinds = ("log_bytes", "sealed_bytes", "merged_bytes", "checkpoint_bytes")
        return float(sum(stats[kind] for kind in kinds) / self.given)

    def track_sealed_bytes_per_byte(self) -> float:
        return float(self.engine.stats()["sealed_bytes"] / self.given)
