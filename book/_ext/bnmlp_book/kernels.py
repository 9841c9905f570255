"""Kernels that start warm: copies of one process that has imported the libraries already.

A kernel of its own takes seconds to import PyTorch and the rest, once for every chapter. Here one
process imports them once and forks. It ends with the build, and its kernels with it.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from jupyter_client import AsyncKernelManager

# Not matplotlib's inline backend, which looks for its kernel when it is imported.
LIBRARIES = ("matplotlib.pyplot", "pandas", "myst_nb", "bnmlp")


class Nursery:
    """The process that forks kernels, for a ``with`` statement."""

    def __enter__(self) -> "Nursery":
        """Start it; the first kernel waits for its imports."""
        paths = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from bnmlp_book.kernels import serve; serve()"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()

    def fork(self, argv: list[str], environment: dict[str, str], folder: str) -> int:
        """Start a kernel and return the number of its process.

        Args:
            argv: Arguments of ``ipykernel_launcher``.
            environment: All its variables.
            folder: Where it runs.

        Returns:
            The number.

        Raises:
            RuntimeError: If the process has ended.
        """
        request = {"argv": argv, "environment": environment, "folder": folder}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline())
        except (OSError, ValueError) as error:
            raise RuntimeError("the process that starts kernels has ended") from error


class Child:
    """A kernel's process, which is nobody's child here: what a manager asks of a ``Popen``."""

    stdin = stdout = stderr = None
    returncode: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs."""
        if self.returncode is None:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = 0
        return self.returncode

    def wait(self) -> int:
        """Called when it has ended."""
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class WarmKernelManager(AsyncKernelManager):
    """Starts Python kernels in the nursery, and others as usual."""

    nursery: Nursery | None = None

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: object) -> None:
        if self.nursery is None or "ipykernel_launcher" not in kernel_cmd:
            await super()._async_launch_kernel(kernel_cmd, **kw)
            return
        argv = kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :]
        pid = self.nursery.fork(argv, dict(kw["env"]), str(kw["cwd"]))
        provisioner = self.provisioner
        provisioner.process, provisioner.pid, provisioner.pgid = Child(pid), pid, pid
        self._reconcile_connection_info(provisioner.connection_info)


def serve() -> None:
    """Import the libraries, then fork a kernel for each line of standard input."""
    from ipykernel import kernelapp

    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as kernels do, later
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are buried at once
    parent = os.getpid()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(kernelapp, request, parent)
        print(pid, flush=True)


def become(kernelapp: object, request: dict, parent: int) -> None:
    """Turn this copy into a kernel."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)  # standard output is the nursery's answer
        sys.path[:] = ["", *(path for path in sys.path if path)]
        kernelapp.launch_new_instance([*request["argv"], f"--IPKernelApp.parent_handle={parent}"])
    finally:
        os._exit(0)
