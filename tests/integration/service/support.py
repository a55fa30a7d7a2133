"""Servers in this process and in another, and a stream by hand that may say anything."""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

import grpc
import numpy as np
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from engram.v1 import frame_pb2
from engram.v1 import service_pb2 as pb

_END = object()
SECONDS = 20.0
TESTS = Path(__file__).resolve().parents[2]  # where programs of tests find this


@contextmanager
def interrupted(place: int, *modules: ModuleType) -> Iterator[list[int]]:
    """Ctrl-C at the `place`th place in the code of modules where the interpreter looks for signals; counts them."""
    files = {module.__file__ for module in modules}
    seen = [0]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            seen[0] += 1
            if seen[0] == place:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)


def freeze(pid: int) -> None:
    """Stop a process until SIGCONT; `kill` alone returns while its threads go on, some ms on a busy machine."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + SECONDS
    while not _is_frozen(Path(f"/proc/{pid}/task")):
        assert time.monotonic() < until, "it does not stop"
        time.sleep(0.001)


def _is_frozen(threads: Path) -> bool:
    try:
        return all(stat.read_text().rpartition(") ")[2][0] == "T" for stat in threads.glob("*/stat"))
    except OSError:  # one has just ended
        return False


def in_a_fork(work: Callable[[], object]) -> tuple[str, int]:
    """What `work` raises in a forked child, and how the child ended; a child that hangs is killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        said = "nothing"
        try:
            work()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.read(reading, 1_000).decode(), os.waitpid(pid, 0)[1]
    finally:
        os.close(reading)


class ServerProcess:
    """`engram serve` on a directory; may be killed and started again on the same port."""

    def __init__(self, data: Path, port: int = 0, environment: dict[str, str] | None = None, **options: str) -> None:
        command = [sys.executable, "-m", "engram.cli", "serve", "--json", "--data", str(data)]
        command += ["--grpc", f"127.0.0.1:{port}", "--log", "json"]
        command += [word for name, value in options.items() for word in (f"--{name}", value)]
        self.log = data.with_suffix(".log")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(environment or {})}
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise AssertionError(self.log.read_text(encoding="utf-8"))
        self.url: str = json.loads(line)["grpc"]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process.poll() is None:
            self._process.send_signal(number)
        code = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGTERM if error is None else signal.SIGKILL)


def method(channel: grpc.Channel, name: str) -> Any:
    """Call a method by its messages."""
    descriptor = pb.DESCRIPTOR.services_by_name["Engram"].methods_by_name[name]
    request, answer = getattr(pb, descriptor.input_type.name), getattr(pb, descriptor.output_type.name)
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    make = kinds[descriptor.client_streaming, descriptor.server_streaming]
    return make(f"/engram.v1.Engram/{name}", request.SerializeToString, answer.FromString)


def raw(url: str) -> grpc.Channel:
    return grpc.insecure_channel(url.removeprefix("grpc://"))


def reason(error: grpc.RpcError) -> str:
    """The engine's code in a status."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in Status.FromString(details).details)
    return info.reason


def frame(first: int, rows: int | list[str], dim: int = 2, **fields: Any) -> frame_pb2.Frame:
    """A frame of texts and vectors that say their sequence."""
    texts = rows if isinstance(rows, list) else [f"t{first + i}" for i in range(rows)]
    vectors = np.array([[1.0 + first + i] * dim for i in range(len(texts))], dtype="<f4")
    return frame_pb2.Frame(
        first_sequence=first, count=len(texts), texts=texts, dim=dim, vectors=vectors.tobytes(), **fields
    )


class Stream:
    """An observing stream by hand."""

    def __init__(self, channel: grpc.Channel, **asked: Any) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        path = "/engram.v1.Engram/Observe"
        make = channel.stream_stream(path, lambda m: m if isinstance(m, bytes) else m.SerializeToString())
        self.call = make(self._messages())
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.reading = threading.Event()
        self.reading.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.opened = pb.Opened()
        if asked:
            self.say(open=pb.Open(**asked))
            self.opened = self.hear("opened")

    def _messages(self) -> Iterator[Any]:
        while (message := self._said.get()) is not _END:
            yield message

    def _read(self) -> None:
        try:
            for data in self.call:
                self.reading.wait()
                self._heard.put(pb.ObserveResponse.FromString(data))
        except grpc.RpcError as error:
            self._heard.put(error)
        self._heard.put(_END)

    def say(self, message: bytes | None = None, **what: Any) -> None:
        self._said.put(pb.ObserveRequest(**what) if message is None else message)

    def frame(self, *arguments: Any, **fields: Any) -> None:
        self.say(frame=frame(*arguments, **fields))

    def half_close(self) -> None:
        self._said.put(_END)

    def next(self) -> Any:
        """The next message, an error, or None at the end."""
        heard = self._heard.get(timeout=SECONDS)
        return None if heard is _END else heard

    def hear(self, wanted: str) -> Any:
        """The next message of a kind; windows and pressure are passed over."""
        while True:
            message = self.next()
            assert isinstance(message, pb.ObserveResponse), message
            which = message.WhichOneof("what")
            if which == wanted:
                return getattr(message, which)
            assert which in ("window", "pressure", "absorbed"), message

    def acknowledged(self, through: int) -> list[frame_pb2.Ack]:
        """Acknowledgements up to a sequence."""
        acks = []
        while not acks or acks[-1].first_sequence + acks[-1].count - 1 < through:
            acks.append(self.hear("ack"))
        return acks

    def error(self) -> grpc.RpcError:
        """What ended the stream."""
        while not isinstance(message := self.next(), grpc.RpcError):
            assert message is not None, "it ended well"
        return message

    def cancel(self) -> None:
        self.call.cancel()
        self.half_close()
        self._thread.join(SECONDS)
