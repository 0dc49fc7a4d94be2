"""The server behind `process_server.ProcessServer`: it starts, watches and ends every process of the host tests.

It imports a host once, by the file beside it that it is given the name of, forks training runs from itself, and
starts other programs too. A line of JSON on stdin is a request, answered by a line on stdout as soon as all that it
started is gone. When stdin ends, which it does however pytest ends, the server ends what is below it and itself.
"""

import gc
import glob
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import psutil
from linux import adopt_orphans, die_with_parent


def main() -> None:
    """Answer requests, one at a time."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the imports print is no answer
    adopt_orphans()
    untouched = dict(os.environ)
    sys.path[0] = os.getcwd()  # as under `python -m`
    for line in sys.stdin:
        request = json.loads(line)
        if "module" in request:
            warm()
        print(json.dumps(serve(request, untouched)), file=replies, flush=True)


@cache
def warm() -> None:
    """Import all that a run imports, also late, but compute nothing: threads would not survive the fork."""
    runpy.run_path(os.path.join(os.path.dirname(__file__), f"{sys.argv[1]}.py"))
    # The children's collector would touch, and so copy, every page of what lies here: seconds at the end of each run.
    gc.collect()
    gc.freeze()


def serve(request: dict, environment: dict[str, str]) -> tuple[int | None, list[str]]:
    """Start what the request asks for, wait for its end, and end what is left of it.

    Args:
        request: `module` and `arguments` to fork processes for, with `packages` on their path, or the `command` of a
            program and its `cwd`; `processes`, how many; `environment`, variables to add to theirs; `stdout` and
            `stderr`, files; `stop`, the fields of a `process_server.Stop`, or null.
        environment: Variables of a program, without those that the imports here have set.

    Returns:
        Exit code of the first process that failed, or 0, or None if all were killed; and what still ran then.
    """
    with reserved_port() as port:
        ranks = [start(request, rank, port, environment) for rank in range(request["processes"])]
        code = wait(ranks, request["stop"])
        left = [" ".join(process.cmdline()) for process in descendants()]
        end_descendants()
    return code, left


def start(request: dict, rank: int, port: int, environment: dict[str, str]) -> int:
    """Fork one process. It leaves `main` by an exception, through the usual end of an interpreter."""
    server = os.getpid()
    sys.stdout.flush()  # or the child would write it once more
    if pid := os.fork():
        return pid
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
    die_with_parent()
    if os.getppid() != server:
        os._exit(1)
    for number, (path, mode) in enumerate(((os.devnull, "r"), (request["stdout"], "a"), (request["stderr"], "a"))):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    if command := request.get("command"):
        os.chdir(request["cwd"])
        os.execvpe(command[0], command, environment | request["environment"])
    os.environ.update(of_rank(rank, request["processes"], port) | request["environment"])
    sys.path[1:1] = request["packages"]
    run_module(request["module"], request["arguments"])
    sys.exit()


def of_rank(rank: int, processes: int, port: int) -> dict[str, str]:
    """The variables by which a launcher tells a process its place."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(value) for name, value in {**own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}


def run_module(module: str, arguments: list[str]) -> None:
    """What `python -m` does."""
    import datasets

    datasets.fingerprint.fingerprint_rng.seed()  # names cache files; all children would draw the same names
    sys.modules.pop(module, None)  # imported above, and now a second time, as __main__
    sys.argv = ["-m", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def wait(ranks: list[int], stop: dict | None) -> int | None:
    """Wait until all have ended, or one has failed, or it is time to kill all; see `serve`."""
    running = set(ranks)
    while running:
        if stop and glob.glob(stop["when"]):
            time.sleep(stop["after"])
            if stop["rank"] is None:
                return None
            os.kill(process_of(stop["rank"], ranks), stop["signal"])
            stop = None
        if select.select([sys.stdin], [], [], 0.02)[0]:  # nobody asks before the answer: stdin has ended
            end_descendants()
            sys.exit()
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            running.remove(pid)
            if code := os.waitstatus_to_exitcode(status):
                return code
    return 0


def process_of(rank: int | str, started: list[int]) -> int:
    """The process of a rank, one of those started or below a launcher; `main` is the first that was started."""
    if rank == "main" or len(started) > 1:
        return started[0 if rank == "main" else rank]
    wanted = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return next(process.pid for process in descendants() if wanted.items() <= process.environ().items())


def descendants() -> list[psutil.Process]:
    """What runs below this process."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def end_descendants() -> None:
    """Kill and reap until no child is left, own or inherited."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port for the first rank to listen on: it is bound here meanwhile, so that no other process is given it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


if __name__ == "__main__":
    main()
