"""Files of emmap's counters, shared with a running Erlang.

Erlang reads and writes the file as emmap's ``open_counters/2`` does: the header by the same binary pattern, cells as
little-endian 64-bit integers. With the emmap library on Erlang's path both sides also count on one cell at the same
time; without it that test is skipped, because plain Erlang has no atomic addition on a file.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmapds

pytestmark = pytest.mark.skipif(shutil.which("erl") is None, reason="no Erlang (on Debian: erlang-base)")

# A node that evaluates one line of Erlang at a time, with F bound to the file, and prints what it came to.
_LOOP = """
    {ok, F} = file:open("PATH", [read, write, raw, binary]),
    Loop = fun(Loop) ->
        case io:get_line("") of
            eof -> ok;
            Line ->
                {ok, Tokens, _} = erl_scan:string(Line),
                {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                {value, Value, _} = erl_eval:exprs(Expressions, [{'F', F}]),
                io:format("~w~n", [Value]),
                Loop(Loop)
        end
    end,
    Loop(Loop), halt().
"""


class Erlang:
    """A running Erlang with the file open."""

    def __init__(self, path: Path) -> None:
        program = " ".join(_LOOP.replace("PATH", str(path)).split())
        self.process = subprocess.Popen(
            ["erl", "-noshell", "-eval", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"Erlang died of {line!r}"
        return answer.strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counters.bin"


@pytest.fixture
def erlang(path: Path) -> Iterator[Erlang]:
    node = Erlang(path)
    yield node
    node.close()


_HEADER = 'case file:pread(F, 0, 16) of {ok, <<"EMMAP", _, _, $\\n, N:64/little-integer>>} -> N; Other -> Other end.'


def cell(index: int) -> str:
    return f"{{ok, <<V:64/little-signed-integer>>}} = file:pread(F, {16 + 8 * index}, 8), V."


def test_erlang_reads_what_python_made_and_counts(path: Path, erlang: Erlang) -> None:
    with mmapds.Counters(path, 5, layout="emmap") as c:
        assert erlang(_HEADER) == "5"
        c.fetch_add(0, 7)
        c.counter(4).fetch_sub(3)
        assert (erlang(cell(0)), erlang(cell(4)), erlang(cell(1))) == ("7", "-3", "0")
        c[0] = -(2**63)
        assert erlang(cell(0)) == str(-(2**63))
    assert path.stat().st_size == 16 + 5 * 8


def test_python_opens_what_erlang_made_and_both_see_each_other_live(path: Path, erlang: Erlang) -> None:
    assert erlang('file:pwrite(F, 0, <<"EMMAP01\\n", 3:64/little-integer, 0:64, 0:64, 0:64>>).') == "ok"
    with mmapds.Counters(path, layout="emmap") as c, mmapds.Counters(path, layout="emmap", mode="readonly") as r:
        assert (len(c), list(c.view())) == (3, [0, 0, 0])
        assert erlang("file:pwrite(F, 24, <<41:64/little-integer>>).") == "ok"
        assert (c.add(1), r[1]) == (42, 42)
        assert erlang(cell(1)) == "42"
        with pytest.raises(mmapds.SchemaMismatch, match="holds 3 counters, asked for were 4"):
            mmapds.Counters(path, 4, layout="emmap")


def test_both_count_on_one_cell_at_the_same_time(path: Path, erlang: Erlang) -> None:
    if erlang("code:which(emmap).") == "non_existing":
        pytest.skip("Erlang finds no emmap library (set ERL_LIBS)")
    mmapds.Counters(path, 2, layout="emmap").close()
    many = 200_000
    with mmapds.Counters(path, layout="emmap") as c:
        assert erlang.process.stdin is not None
        erlang.process.stdin.write(
            f'C = emmap:open_counters("{path}", 2), '
            f"lists:foreach(fun(_) -> emmap:inc_counter(C, 1) end, lists:seq(1, {many})), done.\n"
        )
        erlang.process.stdin.flush()
        hits = c.counter(1)
        for _ in range(many):
            hits.fetch_add()
        assert erlang("ok.") == "done"
        assert c[1] == 2 * many
