"""What one call from Python costs where the engine has next to nothing to do."""

import engram


class Crossing:
    """Calls on a space that holds one memory."""

    def setup(self) -> None:
        self.engine = engram.open()
        self.space = self.engine.space("tiny", dim=4)
        self.space.observe("one", vector=[1, 0, 0, 0])
        self.cue = self.space.get(1).vector

    def teardown(self) -> None:
        self.engine.close()

    def time_len(self) -> None:
        len(self.space)

    def time_get(self) -> None:
        self.space.get(1)

    def time_get_text(self) -> None:
        assert self.space.get(1).text

    def time_recall(self) -> None:
        self.space.recall(vector=self.cue, k=1)
