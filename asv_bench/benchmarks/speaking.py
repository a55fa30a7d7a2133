"""What a session costs, beside writing without one; in memory, so that no disk hides it."""

import engram

from . import rows, sample

BATCH = 256


class Speak:
    """One call: an observation, a batch, a batch that was said before."""

    params = ("without", "session")
    param_names = ("how",)

    def setup(self, how: str) -> None:
        real = sample()
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=real.vectors.shape[1])
        self.session = self.space.session()
        self.writer = self.session if how == "session" else self.space
        self.batch = real.vectors[: min(BATCH, rows())]
        self.one = real.vectors[0]
        self.session.observe_batch(vectors=self.batch)

    def teardown(self, how: str) -> None:
        self.engine.close()

    def time_one(self, how: str) -> None:
        self.writer.observe(vector=self.one)

    def time_batch(self, how: str) -> None:
        self.writer.observe_batch(vectors=self.batch)


class Repeat:
    """A batch that is there already: told its ids, nothing stored."""

    def setup(self) -> None:
        real = sample()
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=real.vectors.shape[1])
        self.session = self.space.session()
        self.batch = real.vectors[: min(BATCH, rows())]
        self.session.observe_batch(vectors=self.batch)

    def teardown(self) -> None:
        self.engine.close()

    def time_duplicate_batch(self) -> None:
        self.session.observe_batch(vectors=self.batch, sequence=1)

    def time_attach(self) -> None:
        self.session = self.space.session(resume=self.session.token)


class Pressure:
    """Looking at how hard a space is pressed, as each admission does."""

    def setup(self) -> None:
        self.engine = engram.open()
        self.space = self.engine.space("notes", dim=2)
        self.session = self.space.session()

    def teardown(self) -> None:
        self.engine.close()

    def time_credits(self) -> object:
        return self.session.credits
