"""Commands as separate processes without the seconds of loading libraries: forked from a process that has loaded them."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

ROOT = Path(__file__).parents[2]
LONGEST = 1 << 18  # bytes of what is asked


class Ended(NamedTuple):
    """The result of a process."""

    status: int
    """Exit code; the signal's number, negative, where one ended it."""
    stdout: bytes
    stderr: bytes

    @property
    def lines(self) -> list[str]:
        """Return the lines of stderr."""
        return self.stderr.decode().splitlines()


class Started:
    """A running command; its stdout and stderr go to files by default."""

    def __init__(self, nursery: "Nursery", pid: int, stdout: BinaryIO, stderr: BinaryIO) -> None:
        self.pid, self._nursery, self._stdout, self._stderr = pid, nursery, stdout, stderr

    def kill(self) -> None:
        """Kill the process as kill -9 does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def lasts(self, seconds: float) -> bool:
        """Return whether the process is still running after this time."""
        until = time.perf_counter() + seconds
        while self._nursery.ask({"over": self.pid}):
            if time.perf_counter() >= until:
                return True
            time.sleep(0.002)
        return False

    def wait(self) -> Ended:
        """Wait for the end of the process."""
        status = self._nursery.ask({"wait": self.pid})
        written = []
        for stream in (self._stdout, self._stderr):
            with stream:
                stream.seek(0)
                written.append(stream.read())
        return Ended(status, *written)


class Nursery:
    """A process that has loaded all libraries and forks others."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            words = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment)
        self._socket = ours

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._process.wait(60)

    def ask(self, what: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Send a request and return the answer."""
        socket.send_fds(self._socket, [json.dumps(what).encode()], descriptors)
        answer = self._socket.recv(100)
        assert answer, "the process that makes others has ended"
        return int(answer)

    def start(
        self,
        name: str,
        *arguments: Any,
        stdin: int | bytes = b"",
        stdout: int | None = None,
        env: Mapping[str, str] | None = None,
        file_size: int | None = None,
    ) -> Started:
        """Start a command.

        Args:
            stdin: A descriptor, or what it reads.
            stdout: A descriptor, which is then the caller's to read and close; a file's where None.
            env: Beside the environment of this process.
            file_size: The most bytes that a file may have (RLIMIT_FSIZE).
        """
        with contextlib.ExitStack() as stack:
            if isinstance(stdin, bytes):
                given = stack.enter_context(tempfile.TemporaryFile())
                given.write(stdin)
                given.seek(0)
                stdin = given.fileno()
            out, error = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed by `wait`
            asked = {"name": name, "arguments": [str(each) for each in arguments], "file_size": file_size}
            changed = {"env": dict(os.environ) | dict(env or {})}
            pid = self.ask(asked | changed, [stdin, out.fileno() if stdout is None else stdout, error.fileno()])
        return Started(self, pid, out, error)

    def run(self, name: str, *arguments: Any, **how: Any) -> Ended:
        """Start a command and wait for it."""
        return self.start(name, *arguments, **how).wait()


def load_everything() -> None:
    """Import all modules of the commands; optional packages come with the modules that need them."""
    from cliptools.library_patches import ensure_torchvision

    ensure_torchvision()
    import open_clip
    import rich.table

    import cliptools

    assert open_clip and rich.table
    for module in pkgutil.walk_packages(cliptools.__path__, "cliptools."):
        if not module.name.endswith(".diffusion"):
            importlib.import_module(module.name)


def serve(channel: socket.socket) -> tuple[str, list[str]] | None:
    """Fork for each request until requests end, and run the request in the child."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 3)
        if not message:
            return None
        asked = json.loads(message)
        if "wait" in asked:
            channel.send(str(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])).encode())
            continue
        if "over" in asked:
            running = os.waitid(os.P_PID, asked["over"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            channel.send(str(int(running)).encode())
            continue
        pid = os.fork()
        if not pid:
            channel.close()
            become(asked, descriptors)
            return asked["name"], asked["arguments"]
        for each in descriptors:
            os.close(each)
        channel.send(str(pid).encode())


def become(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Set up a process as a shell starts it: its own streams, environment and limits."""
    for number, each in enumerate(descriptors):
        os.dup2(each, number)
        os.close(each)
    sys.stdin, sys.stdout, sys.stderr = (open(i, mode, closefd=False) for i, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(asked["env"] | {"OMP_NUM_THREADS": "1"})
    tempfile.tempdir = None
    if asked["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_size"],) * 2)


class Study(NamedTuple):
    """The data of commands: a few scenes, and bundles of the embedded model for them."""

    photos: Path
    effects: Path
    neurons: Path


def make_study(nursery: "Nursery", folder: Path) -> Study:
    """Write 40 scenes and a bundle of 3,072 neurons of four layers, of which 300 have words."""
    made = Study(folder / "scenes" / "images", folder / "effects.safetensors", folder / "neurons.safetensors")
    for words in (
        ("scenes", "--count", 40, "--out-dir", folder / "scenes"),
        ("effects", made.photos, "--layers", "3-6", "--top-images", 5, "-o", made.effects),
        ("view", made.effects, "--layers", "5-6", "--head", 300, "-o", folder / "few.safetensors"),
        ("decompose", folder / "few.safetensors", "--m", 8, "-o", made.neurons),
    ):
        ended = nursery.run(*words)
        assert ended.status == 0, ended.stderr.decode()
    return made


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a separate file system with room for so many bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def end(status: int) -> None:
    """End the process like the interpreter, but without freeing every object, which takes a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    load_everything()
    gc.freeze()  # so that children need not copy what only the collector touches
    import torch

    torch.set_num_threads(1)
    with socket.socket(fileno=int(sys.argv[1])) as line:
        work = serve(line)
    if work is not None:
        name, arguments = work
        try:
            importlib.import_module(f"cliptools.cli.{name}").main.main(arguments)
        except SystemExit as stop:
            end(int(stop.code or 0))
