"""A C program that plays ping-pong between two processes with bare futexes: the least that waking another can cost.

It is compiled with the system's compiler when it is needed, and runs in rounds between our own, on the same two
processors.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["build", "play"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef _Atomic uint32_t word;

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set); /* else wherever the kernel puts us */
}

static void await(word *of, uint32_t value)
{
    while (atomic_load(of) != value)
        syscall(SYS_futex, of, FUTEX_WAIT, value - 1, NULL, NULL, 0);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void say(word *to, uint32_t value, double pause)
{
    for (double until = pause > 0 ? now() + pause : 0; until > 0 && now() < until;)
        ;
    atomic_store(to, value);
    syscall(SYS_futex, to, FUTEX_WAKE, 1, NULL, NULL, 0);
}


int main(int count_of, char **of)
{
    if (count_of != 5)
        return 2;
    uint32_t count = atoi(of[3]), warm = count / 10 + 1;
    double pause = atof(of[4]);
    word *there = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), *back = there + 512;
    if (there == MAP_FAILED)
        return 1;
    pid_t child = fork();
    if (child < 0)
        return 1;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(atoi(of[2]));
        for (uint32_t i = 1; i <= warm + count; i++) {
            await(there, i);
            say(back, i, pause);
        }
        return 0;
    }
    pin(atoi(of[1]));
    double start = 0;
    for (uint32_t i = 1; i <= warm + count; i++) {
        if (i == warm + 1)
            start = now();
        say(there, i, pause);
        await(back, i);
    }
    printf("%.3f\n", (now() - start) / count);
    return 0;
}
"""


def build(directory: str) -> Path | str:
    """The program, compiled in a directory; or, a str, why there is none."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no C compiler"
    program = Path(directory, "futexes")
    made = subprocess.run(
        [compiler, "-O2", "-std=gnu11", "-x", "c", "-", "-o", str(program)],
        input=_SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        said = made.stderr.strip().splitlines() or ["no message"]
        return f"{compiler} failed: {next((line for line in said if 'error' in line), said[0])}"
    return program


def play(program: Path, cpus: tuple[int, int], count: int, pause: int) -> float:
    """Nanoseconds of one time there and back, of `count`; each keeps the ball for `pause` nanoseconds."""
    command = [str(program), *map(str, (*cpus, count, pause))]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)
