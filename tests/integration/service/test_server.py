"""A server's life: settings, readiness, a generic client, the end; and the example and the command line against it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import engram
from engram.server import Server, Settings
from engram.server.status import code_of, details_of
from engram.v1 import service_pb2 as pb

from .support import ServerProcess, Stream, method, raw, reason

ROOT = Path(__file__).resolve().parents[3]
RUST_EXAMPLE = os.environ.get("ENGRAM_RUST_EXAMPLE", "")  # built by `make safety`
EXAMPLES = {"python": [sys.executable, str(ROOT / "examples/python_stream.py")], "rust": [RUST_EXAMPLE]}


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "rust" and not RUST_EXAMPLE:
        pytest.skip("the Rust example is built by make safety")
    return EXAMPLES[request.param]


def test_settings_come_from_arguments_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "engram.toml"
    file.write_text('grpc = "127.0.0.1:1"\ndurability = "os"\nread_threads = 3\n[limits]\nbatch_items_max = 7\n')
    monkeypatch.setenv("ENGRAM_GRPC", "127.0.0.1:2")
    monkeypatch.setenv("ENGRAM_DURABILITY", "memory")
    settings = Settings.read(file, durability="sync")
    assert (settings.grpc, settings.durability, settings.read_threads) == ("127.0.0.1:2", "sync", 3)
    assert settings.limits == {"batch_items_max": 7}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense = 1", "no such setting: nonsense"),
        ("read_threads = 0", "read_threads"),
        ("grpc = 7", "grpc"),
        ("= 1", "is not TOML"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "engram.toml"
    file.write_text(text)
    with pytest.raises(engram.InvalidArgument, match=said):
        Settings.read(file)
    with pytest.raises(engram.InvalidArgument, match="absent"):
        Settings.read(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "192.168.1.1:7637", "example.org:1", "nonsense", "localhost:x"]
)
def test_only_loopback_is_served(address: str) -> None:
    with pytest.raises(engram.InvalidArgument):
        engram.serve(grpc=address)


def test_a_port_in_use_and_a_directory_in_use(server: Server, tmp_path: Path) -> None:
    with pytest.raises(engram.InvalidArgument, match="in use"):
        engram.serve(grpc=server.url.removeprefix("grpc://"))
    with engram.open(tmp_path / "d"), pytest.raises(engram.Locked):
        engram.serve(tmp_path / "d", grpc="127.0.0.1:0")


def test_health_says_when_it_is_ready(server: Server, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "engram.v1.Engram"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_while_it_starts_calls_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    recover = Server._recover

    def looked(server: Server) -> None:
        with raw(server.url) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            seen["health"] = stub.Check(health_pb2.HealthCheckRequest()).status
            for name, request in (("ListSpaces", pb.ListSpacesRequest()), ("Recall", pb.RecallRequest())):
                with pytest.raises(grpc.RpcError) as caught:
                    list(method(channel, name)(request)) if name == "Recall" else method(channel, name)(request)
                seen[name] = caught.value.code()
            stream = Stream(channel)
            stream.say(open=pb.Open(space="s"))
            seen["Observe"] = stream.error().code()
            stream.cancel()
        recover(server)

    monkeypatch.setattr(Server, "_recover", looked)
    with engram.serve(grpc="127.0.0.1:0") as server, engram.connect(server.url) as engine:
        assert engine.spaces() == []
    unavailable = grpc.StatusCode.UNAVAILABLE
    assert seen == {
        "health": health_pb2.HealthCheckResponse.NOT_SERVING,
        "ListSpaces": unavailable,
        "Recall": unavailable,
        "Observe": unavailable,
    }


def test_a_generic_client_learns_what_to_call(server: Server, channel: grpc.Channel) -> None:
    """Nothing of engram is used here but what reflection tells."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "engram.v1.Engram" in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName("engram.v1.Engram")

    def call(name: str, request: dict[str, object]) -> dict[str, object]:
        described = service.methods_by_name[name]
        kinds = [message_factory.GetMessageClass(kind) for kind in (described.input_type, described.output_type)]
        invoke = channel.unary_unary(f"/{service.full_name}/{name}", kinds[0].SerializeToString, kinds[1].FromString)
        return json_format.MessageToDict(invoke(json_format.ParseDict(request, kinds[0]())))

    call("CreateSpace", {"space": "generic", "dim": 2})
    put = call("PutObservations", {"space": "generic", "frame": {"count": 1, "texts": ["hello"]}})
    assert put["firstMemoryId"] == "1"
    assert call("Get", {"view": {"space": "generic"}, "memoryId": 1})["memory"]["text"] == "hello"  # type: ignore[index]


def test_statistics_are_watched(server: Server, channel: grpc.Channel) -> None:
    server.engine.space("watched", dim=2)
    watching = method(channel, "WatchStats")(pb.WatchStatsRequest(space="watched", interval_ms=100))
    assert json.loads(next(watching).stats)["memories"] == 0
    server.engine.space("watched").observe("x")
    while json.loads(next(watching).stats)["memories"] == 0:
        pass
    watching.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(method(channel, "WatchStats")(pb.WatchStatsRequest(interval_ms=1)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_none_is_refused(channel: grpc.Channel) -> None:
    for name in ("Get", "RecallBatch", "Forget"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/engram.v1.Engram/{name}")(b"\xff\xff\xff")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/engram.v1.Engram/Get")(b"x" * (5 << 20))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(caught.value) == "TOO_LARGE"
    with pytest.raises(grpc.RpcError) as caught:  # by gRPC, which reads none of it
        channel.unary_unary("/engram.v1.Engram/Get")(b"x" * (9 << 20))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_error_goes_over_the_wire() -> None:
    fields = {"field": "f", "index": 3, "retry_after_ms": 70, "level": "CRITICAL", "expected": 9, "path": "p"}
    for code, kind in engram._exceptions.TABLE.items():
        error = kind("said", **fields)
        assert code_of(error).name == engram._exceptions.GRPC[code]

        class Call(grpc.aio.AioRpcError):
            pass

        trailing = grpc.aio.Metadata(("grpc-status-details-bin", details_of(error)))
        from engram.client.status import error_of

        back = error_of(Call(code_of(error), grpc.aio.Metadata(), trailing, "said"))
        assert (type(back), str(back), vars(back)) == (kind, "said", vars(error))


def test_a_stop_loses_nothing_that_was_sent(tmp_path: Path) -> None:
    """Streams are told, what they sent is acknowledged, and they go on with the next server."""
    server = ServerProcess(tmp_path / "data")
    with engram.connect(server.url) as engine:
        stream = engine.space("s", dim=2).stream()
        vectors = np.ones((50, 2), "f4")
        stop, given = threading.Event(), 0

        def source() -> None:
            nonlocal given
            while not stop.is_set():
                stream.observe_batch(vectors=vectors, texts=[f"t{given + i}" for i in range(50)])
                given += 50
                time.sleep(0.001)

        thread = threading.Thread(target=source)
        thread.start()
        for _ in range(2):
            time.sleep(0.3)
            assert server.stop() == 0
            server = ServerProcess(tmp_path / "data", server.port)
        time.sleep(0.2)
        stop.set()
        thread.join()
        stream.flush(30)
        assert stream.committed == given
        stream.close()
        assert [memory.text for memory in engine.space("s").list()] == [f"t{i}" for i in range(given)]
    assert server.stop() == 0
    assert engram.verify(tmp_path / "data")["torn_bytes"] == 0


def test_the_engine_stays_open_if_it_was_given(tmp_path: Path) -> None:
    with engram.open(tmp_path / "d") as engine:
        with engram.serve(engine, grpc="127.0.0.1:0") as server:
            assert server.engine is engine
            engine.space("s", dim=2).observe("here")
            with engram.connect(server.url) as client:
                assert client.space("s").get(1).text == "here"  # type: ignore[union-attr]
        engine.space("s").observe("still here")
        server.stop()


def test_ctrl_c_flushes_a_stream(tmp_path: Path) -> None:
    code = """
import signal, sys, time, engram
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without it
engine = engram.connect(sys.argv[1])
with engine.space("s", dim=2).stream() as stream:
    for n in range(10**9):
        stream.observe(f"t{n}")
        if n == 500:
            print("ready", flush=True)
        if n > 500:
            time.sleep(0.001)
"""
    with ServerProcess(tmp_path / "data") as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        process.stdout.close()
        with engram.connect(server.url) as engine:
            texts = [memory.text for memory in engine.space("s").list()]
        assert len(texts) > 500
        assert texts == [f"t{i}" for i in range(len(texts))]


def test_who_forgets_to_close_ends(tmp_path: Path) -> None:
    """Connections are closed before the interpreter goes down, with streams on them or not."""
    code = """
import atexit, sys
atexit.register(lambda: print("closed" if engine._core.link._closed else "open"))
import engram
engine = engram.connect(sys.argv[1])
stream = engine.space("s", dim=2).stream()
stream.observe("left behind")
"""
    with ServerProcess(tmp_path / "data") as server:
        ran = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=30, check=False
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "closed\n", "")


def test_the_examples_stream_and_resume(tmp_path: Path, example: list[str]) -> None:
    with ServerProcess(tmp_path / "data") as server:
        command = [*example, server.url, "--dim", "8"]
        command += ["--rate", "500", "--seconds", "0.6", "--position", str(tmp_path / "position")]
        said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert "goes on behind 0\n300 observations" in said[0]
    assert "goes on behind 300\n300 observations" in said[1]
    assert "600 memories" in said[1]
    assert "p99" in said[1]


def test_the_examples_go_on_over_a_kill(tmp_path: Path, example: list[str]) -> None:
    with ServerProcess(tmp_path / "data") as server:
        command = [*example, server.url, "--dim", "8", "--rate", "500", "--seconds", "3"]
        source = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(1.0)
        server.kill()
    with ServerProcess(tmp_path / "data", server.port) as server:
        said, _ = source.communicate(timeout=40)
        assert "1500 memories" in said.replace(",", "")
        assert "0 reconnects" not in said
        with engram.connect(server.url) as engine:
            texts = [memory.text for memory in engine.space("source").list()]
    assert texts == [f"observation {n}" for n in range(1, 1501)]


def test_commands_work_on_a_server(tmp_path: Path) -> None:
    def command(*arguments: str, stdin: str = "") -> dict[str, object]:
        ran = subprocess.run(
            [sys.executable, "-m", "engram.cli", *arguments, "--url", server.url, "--json"],
            input=stdin,
            capture_output=True,
            text=True,
        )
        document: dict[str, object] = json.loads(ran.stdout)
        return document

    rows = "".join(json.dumps({"text": f"t{i}", "vector": [1, i], "key": f"k{i}"}) + "\n" for i in range(300))
    with ServerProcess(tmp_path / "data") as server:
        assert command("ingest", "-", "--space", "s", stdin=rows)["stored"] == 300
        resumed = command("ingest", "-", "--space", "s2", "--resume", str(tmp_path / "p"), stdin=rows)
        assert resumed["stored"] == 300
        hits = command("recall", "--space", "s", "--like", "8", "-k", "1")["hits"]
        assert hits[0]["text"] == "t7"  # type: ignore[index]
        assert command("stats")["spaces"]["s"]["memories"] == 300  # type: ignore[index]
        assert command("recall", "--space", "none", "--like", "1")["error"]["code"] == "NOT_FOUND"  # type: ignore[index]
    assert command("stats")["error"]["code"] == "UNAVAILABLE"  # type: ignore[index]


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    environment = {**os.environ, "ENGRAM_READ_THREADS": "2"}
    printed = subprocess.run(
        [sys.executable, "-m", "engram.cli", "serve", "--print-config", "--grpc", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    config = json.loads(printed.stdout)
    assert (config["grpc"], config["read_threads"]) == ("127.0.0.1:0", 2)
    server = ServerProcess(tmp_path / "data")
    assert server.stop() == 0
    events = [json.loads(line)["event"] for line in server.log.read_text(encoding="utf-8").splitlines()]
    assert events == ["listening", "recovered", "stopped"]
