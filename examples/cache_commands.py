"""The commands that cache_server.py knows, and the connections that they come from."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterable

from cache_data import Cache
from cache_protocol import NULL2, NULL3, OK, Parser, Refused, array, bulk, failure, integer, number, pattern, text_of

import mmapds

WRITE = 256 << 10  # bytes of answers that are written at a time

Handler = Callable[["Connection", list[bytes]], bytes]
COMMANDS: dict[bytes, tuple[Handler, int]] = {}  # by name in capitals, and in small letters


def command(arity: int, *names: str) -> Callable[[Handler], Handler]:
    """How many words it has, its name included; -n: n or more."""

    def register(handler: Handler) -> Handler:
        for name in names:
            COMMANDS[name.upper().encode()] = COMMANDS[name.encode()] = handler, arity
        return handler

    return register


class Connection(asyncio.Protocol):
    """One client."""

    transport: asyncio.Transport

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.map = cache.map
        self.parser = Parser()
        self.null = NULL2
        self.name = b""
        self.id = 0
        self.full = False  # the client does not read its answers: it gets no more of them
        self.last = False  # the connection ends with what is answered now
        self.waiting: list[list[bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.cache.accepted += 1
        self.cache.transports.add(transport)
        self.id = self.cache.accepted

    def connection_lost(self, _: Exception | None) -> None:
        self.waiting.clear()
        self.cache.transports.discard(self.transport)

    def pause_writing(self) -> None:
        self.full = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        asyncio.get_running_loop().call_soon(self.go_on)  # asyncio does not expect a transport to be closed from here

    def go_on(self) -> None:
        self.full = False
        waiting, self.waiting = self.waiting, []
        if not self.transport.is_closing():
            self.answer(waiting)
            if not self.full and not self.last:
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if not self.last:
            self.answer(self.parser.feed(data))

    def answer(self, commands: list[list[bytes]]) -> None:
        """Answers these, as far as the client reads the answers, and then what is wrong with the rest."""
        out: list[bytes] = []
        size = 0
        for done, args in enumerate(commands, 1):
            handler, arity = COMMANDS.get(args[0]) or COMMANDS.get(args[0].upper()) or (Connection.unknown, -1)
            try:
                if len(args) != arity if arity > 0 else len(args) < -arity:
                    raise Refused(f"ERR wrong number of arguments for '{text_of(args[0].lower())}' command")
                reply = handler(self, args)
            except Refused as error:
                reply = failure(str(error))
            except (mmapds.MmapdsError, OSError, TypeError, ValueError) as error:  # a damaged block, a key too long
                reply = failure(f"ERR {error}")
            out.append(reply)
            size += len(reply)
            if self.last:
                break
            if size >= WRITE:
                self.transport.write(b"".join(out))
                out.clear()
                size = 0
                if self.full:
                    self.waiting = commands[done:]
                    self.cache.commands += done
                    return
        self.cache.commands += len(commands)
        if self.parser.error and not self.last:
            out.append(failure(f"ERR {self.parser.error}"))
            self.last = True
        if out:
            self.transport.write(b"".join(out))
        if self.last:
            self.transport.close()

    def mapping(self, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
        """RESP3 has them; in RESP2 they are flat arrays. Of names and answers."""
        flat = [part for name, answer in pairs for part in (bulk(name), answer)]
        return b"%%%d\r\n" % (len(flat) // 2) + b"".join(flat) if self.null is NULL3 else array(flat)

    def unknown(self, args: list[bytes]) -> bytes:
        if args[0].upper() in (b"POST", b"HOST:"):  # a browser that was talked into this
            self.last = True
            return b""
        shown = "".join(f"'{text_of(arg[:128])}' " for arg in args[1:9])
        raise Refused(f"ERR unknown command '{text_of(args[0][:128])}', with args beginning with: {shown}")

    # -- reading --

    @command(2, "get")
    def get(self, args: list[bytes]) -> bytes:
        value = self.map.get(args[1])
        return self.null if value is None else b"$%d\r\n%b\r\n" % (len(value), value)

    @command(-2, "mget")
    def mget(self, args: list[bytes]) -> bytes:
        found = self.map.get_many(args[1:])
        return array([bulk(found[key]) if key in found else self.null for key in args[1:]])

    @command(-2, "exists")
    def exists(self, args: list[bytes]) -> bytes:
        return number(sum(key in self.map for key in args[1:]))

    @command(2, "strlen")
    def strlen(self, args: list[bytes]) -> bytes:
        return number(len(self.map.get_view(args[1], b"")))

    @command(2, "type")
    def type_(self, args: list[bytes]) -> bytes:
        return b"+string\r\n" if args[1] in self.map else b"+none\r\n"

    @command(1, "dbsize")
    def dbsize(self, _: list[bytes]) -> bytes:
        return number(len(self.map))

    @command(-2, "scan")
    def scan(self, args: list[bytes]) -> bytes:
        if not args[1].isdigit() or len(args[1]) > 20 or int(args[1]) >= 1 << 64:
            raise Refused("ERR invalid cursor")
        glob, count, wanted = b"*", 10, b"string"
        if len(args) % 2:
            raise Refused("ERR syntax error")
        for option, value in zip(args[2::2], args[3::2], strict=True):
            match option.upper():
                case b"MATCH":
                    glob = value
                case b"COUNT":
                    count = whole(value)
                    if count < 1:
                        raise Refused("ERR syntax error")
                case b"TYPE":
                    wanted = value.lower()
                case _:
                    raise Refused("ERR syntax error")
        cursor, keys = self.cache.scan(int(args[1]), count, glob)
        return array([bulk(b"%d" % cursor), array([bulk(key) for key in keys] if wanted == b"string" else [])])

    # -- changing --

    @command(-3, "set")
    def set(self, args: list[bytes]) -> bytes:
        key, value, ttl = args[1], args[2], None
        flags: set[bytes] = set()
        options = iter(args[3:])
        for option in map(bytes.upper, options):
            if option in (b"EX", b"PX") and ttl is None and (given := next(options, None)) is not None:
                ttl = whole(given) / (1 if option == b"EX" else 1000)
            elif option in (b"NX", b"XX", b"GET"):
                flags.add(option)
            else:
                raise Refused("ERR syntax error")
        if {b"NX", b"XX"} <= flags:
            raise Refused("ERR syntax error")
        if ttl is not None and not 0 < ttl < 1e9:
            raise Refused("ERR invalid expire time in 'set' command")
        answer = self.get(args) if b"GET" in flags else OK
        if flags and ((key in self.map and b"NX" in flags) or (key not in self.map and b"XX" in flags)):
            return answer if b"GET" in flags else self.null
        self.cache.set(key, value, ttl)
        return answer

    @command(-3, "mset")
    def mset(self, args: list[bytes]) -> bytes:
        if len(args) % 2 == 0:
            raise Refused("ERR wrong number of arguments for 'mset' command")
        for key, value in zip(args[1::2], args[2::2], strict=True):
            self.cache.set(key, value)
        return OK

    @command(-2, "del", "unlink")
    def delete(self, args: list[bytes]) -> bytes:
        gone = 0
        for key in args[1:]:
            if key in self.map:
                del self.map[key]
                gone += 1
        return number(gone)

    # -- about connections --

    @command(-1, "ping")
    def ping(self, args: list[bytes]) -> bytes:
        if len(args) > 2:
            raise Refused("ERR wrong number of arguments for 'ping' command")
        return bulk(args[1]) if len(args) == 2 else b"+PONG\r\n"

    @command(2, "echo")
    def echo(self, args: list[bytes]) -> bytes:
        return bulk(args[1])

    @command(2, "select")
    def select(self, args: list[bytes]) -> bytes:
        if whole(args[1]):
            raise Refused("ERR DB index is out of range")
        return OK

    @command(-1, "quit")
    def quit(self, _: list[bytes]) -> bytes:
        self.last = True
        return OK

    @command(-1, "hello")
    def hello(self, args: list[bytes]) -> bytes:
        null, name = self.null, self.name
        if len(args) > 1:
            version = integer(args[1])
            if version is None:
                raise Refused("ERR Protocol version is not an integer or out of range")
            if version not in (2, 3):
                raise Refused("NOPROTO unsupported protocol version")
            null = NULL3 if version == 3 else NULL2
            options = iter(args[2:])
            for option in options:
                more = list(itertools.islice(options, 2 if option.upper() == b"AUTH" else 1))
                if option.upper() == b"AUTH" and len(more) == 2:
                    if more[0] != b"default":  # who needs no password, as in Redis as it comes
                        raise Refused("WRONGPASS invalid username-password pair or user is disabled.")
                elif option.upper() == b"SETNAME" and more:
                    name = more[0]
                else:
                    raise Refused(f"ERR Syntax error in HELLO option '{text_of(option)}'")
        self.null, self.name = null, name
        return self.mapping(
            [
                (b"server", bulk(b"mmapds")),
                (b"version", bulk(mmapds.__version__.encode())),
                (b"proto", number(3 if null is NULL3 else 2)),
                (b"id", number(self.id)),
                (b"mode", bulk(b"standalone")),
                (b"role", bulk(b"master")),
                (b"modules", array([])),
            ]
        )

    @command(-2, "client")
    def client(self, args: list[bytes]) -> bytes:
        match args[1].upper(), *args[2:]:
            case (b"SETINFO", _, _) | (b"NO-EVICT" | b"NO-TOUCH", _):
                return OK
            case b"SETNAME", name:
                self.name = name
                return OK
            case (b"GETNAME",):
                return bulk(self.name) if self.name else self.null
            case (b"ID",):
                return number(self.id)
        raise Refused(subcommand("CLIENT", args))

    # -- about the server --

    @command(-1, "command")
    def commands(self, args: list[bytes]) -> bytes:
        names = [name for name in COMMANDS if name.islower()]
        match [arg.upper() for arg in args[1:2]]:
            case []:
                return array([described(name) for name in names])
            case [b"COUNT"]:
                return number(len(names))
            case [b"LIST"]:
                return array([bulk(name) for name in names])
            case [b"INFO"]:
                return array([described(name) if name.lower() in names else self.null for name in args[2:] or names])
            case [b"DOCS"]:
                return self.mapping([])
        raise Refused(subcommand("COMMAND", args))

    @command(-2, "config")
    def config(self, args: list[bytes]) -> bytes:
        if args[1].upper() != b"GET" or len(args) < 3:
            raise Refused(subcommand("CONFIG", args))
        settings = {b"appendonly": b"no", b"databases": b"1", b"maxmemory": b"0", b"port": b"%d" % self.cache.port}
        settings |= {b"dir": os.fsencode(self.map.path), b"save": b""}
        asked = [pattern(glob.lower())[0] for glob in args[2:]]
        return self.mapping((name, bulk(text)) for name, text in settings.items() if any(p.match(name) for p in asked))

    @command(-1, "info")
    def info(self, args: list[bytes]) -> bytes:
        asked = {text_of(arg).lower() for arg in args[1:]} - {"default", "all", "everything"}
        blocks = [
            f"# {section}\r\n" + "".join(f"{name}:{value}\r\n" for name, value in figures.items())
            for section, figures in self.figures().items()
            if not asked or section.lower() in asked
        ]
        data = "\r\n".join(blocks).encode("utf-8", "surrogateescape")
        return b"=%d\r\ntxt:%b\r\n" % (len(data) + 4, data) if self.null is NULL3 else bulk(data)

    def figures(self) -> dict[str, dict[str, object]]:
        """What INFO says: of this worker."""
        cache = self.cache
        with open("/proc/self/status", encoding="ascii") as status:
            memory = {line.split()[0]: int(line.split()[1]) << 10 for line in status if line.endswith("kB\n")}
        return {
            "Server": {
                "redis_version": "7.0.0",  # whose protocol this is: clients look what it can do
                "redis_mode": "standalone",
                "server_name": f"mmapds {mmapds.__version__}",
                "process_id": os.getpid(),
                "tcp_port": cache.port,
                "uptime_in_seconds": int(time.monotonic() - cache.started),
            },
            "Clients": {"connected_clients": len(cache.transports)},
            "Memory": {"used_memory": memory["RssAnon:"], "used_memory_rss": memory["VmRSS:"]},
            "Stats": {"total_connections_received": cache.accepted, "total_commands_processed": cache.commands},
            "Snapshot": {
                "snapshot_path": cache.map.path,
                "snapshot_version": cache.base.version,
                "snapshot_keys": len(cache.base),
                "overlay_size": cache.map.overlay_size,
            },
            "Keyspace": {"db0": f"keys={len(cache.map)},expires=0,avg_ttl=0"} if len(cache.map) else {},
        }


def whole(text: bytes) -> int:
    value = integer(text)
    if value is None:
        raise Refused("ERR value is not an integer or out of range")
    return value


def subcommand(name: str, args: list[bytes]) -> str:
    return f"ERR unknown subcommand or wrong number of arguments for '{text_of(args[1])}'. Try {name} HELP."


def described(name: bytes) -> bytes:
    """One entry of COMMAND: name, arity, flags, first and last key, step; and four lists of more."""
    arity = COMMANDS[name.lower()][1]
    flag = b"+write\r\n" if name.lower() in (b"set", b"mset", b"del", b"unlink") else b"+readonly\r\n"
    keys = {b"get": (1, 1, 1), b"set": (1, 1, 1), b"strlen": (1, 1, 1), b"type": (1, 1, 1), b"mset": (1, -1, 2)}
    keys |= dict.fromkeys((b"mget", b"exists", b"del", b"unlink"), (1, -1, 1))
    places = [number(place) for place in keys.get(name.lower(), (0, 0, 0))]
    return array([bulk(name.lower()), number(arity), array([flag]), *places, *[array([])] * 4])
