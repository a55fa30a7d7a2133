"""What a server can be told: by arguments, the environment (`ENGRAM_…`), a TOML file; in that order."""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from engram._convert import SECONDS_MAX
from engram._exceptions import InvalidArgument

_MIB = 1 << 20
_COUNT_MAX = 1_000_000


class Settings(BaseSettings):
    """Settings of a server, limits with their units in their names.

    Attributes
    ----------
    data : Path or None
        The directory to serve; None: in memory.
    grpc : str
        Host and port; 0: a free one. Only loopback for now.
    durability : {"sync", "os", "memory"}
    limits : dict of str to int
        Of the engine (`docs/reference/limits.md`).
    reflection : bool
        Answer generic clients that ask what there is to call.
    drain_seconds : float
        What a stop waits for.
    read_threads, write_threads, slow_threads : int
        Calls under way at once: recalls, and as many other reads; observations and spaces; checkpoints, and
        as many purges. Streams need none.
    message_bytes_max : int
        Of one message either way.
    metadata_bytes_max : int
        Of a call's headers.
    streams_max, snapshots_max : int
        Open at once.
    outbound_bytes_max : int
        What a stream may owe a client that does not read, before it is cut.
    idle_seconds_max : float
        A stream without traffic is ended after it; its session can be resumed.
    keepalive_seconds : float
        How often a silent client is asked whether it is there.
    log : {"console", "json"}
    """

    model_config = SettingsConfigDict(env_prefix="ENGRAM_", env_nested_delimiter="__", extra="ignore")

    data: Path | None = None
    grpc: str = "127.0.0.1:7637"
    durability: Literal["sync", "os", "memory"] = "sync"
    limits: dict[str, int] = {}
    reflection: bool = False
    drain_seconds: float = Field(default=10.0, ge=0, le=SECONDS_MAX)
    read_threads: int = Field(default=8, ge=1, le=256)
    write_threads: int = Field(default=16, ge=1, le=256)
    slow_threads: int = Field(default=4, ge=1, le=64)
    message_bytes_max: int = Field(default=4 * _MIB, ge=64 << 10, le=64 * _MIB)
    metadata_bytes_max: int = Field(default=16 << 10, ge=1 << 10, le=_MIB)
    streams_max: int = Field(default=10_000, ge=1, le=_COUNT_MAX)
    snapshots_max: int = Field(default=10_000, ge=1, le=_COUNT_MAX)
    outbound_bytes_max: int = Field(default=_MIB, ge=16 << 10, le=1_024 * _MIB)
    idle_seconds_max: float = Field(default=300.0, gt=0, le=SECONDS_MAX)
    keepalive_seconds: float = Field(default=30.0, ge=1, le=SECONDS_MAX)
    log: Literal["console", "json"] = "console"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; a file is given through `read`."""
        return init_settings, env_settings

    @field_validator("data", mode="before")
    @classmethod
    def _named(cls, path: Any) -> Any:
        if path == "":
            raise ValueError('an empty path: name a directory, or "." for this one')
        return path

    @field_validator("grpc")
    @classmethod
    def _loopback(cls, address: str) -> str:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f'{address!r} is not HOST:PORT, like "127.0.0.1:7637"')
        bare = host.removeprefix("[").removesuffix("]")
        if ":" in bare and bare == host:
            raise ValueError(f"an IPv6 address stands in brackets: [{host}]:{port}")
        try:
            loopback = bare == "localhost" or ipaddress.ip_address(bare).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(f"{host} is not a loopback address; without keys and TLS nothing else is served")
        return address

    @classmethod
    def read(cls, file: Path | None = None, **arguments: Any) -> Settings:
        """Return the settings; the environment wins over the file, arguments over both. Raises `InvalidArgument`."""
        given = {name: value for name, value in arguments.items() if value is not None}
        unknown = given.keys() - cls.model_fields.keys()
        try:
            in_file = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
            unknown |= in_file.keys() - cls.model_fields.keys()
            if unknown:
                names = ", ".join(sorted(unknown))
                raise InvalidArgument(f"no such setting: {names}", field=min(unknown), index=None)
            nearer = cls(**given)
            limits = in_file.get("limits")
            if isinstance(limits, dict) and "limits" in nearer.model_fields_set:  # one by one, as the rest
                given["limits"] = {**limits, **nearer.limits}
            left = {name: value for name, value in in_file.items() if name not in nearer.model_fields_set}
            return cls(**left, **given)
        except OSError as error:
            raise InvalidArgument(f"{file}: {error.strerror}", field="config", index=None) from None
        except SettingsError as error:
            raise InvalidArgument(f"environment: {error}", field="environment", index=None) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{file} is not TOML: {error}", field="config", index=None) from None
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise InvalidArgument(
                f"{name}: {first['msg'].removeprefix('Value error, ')}", field=name, index=None
            ) from None
