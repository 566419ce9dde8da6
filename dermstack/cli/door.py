"""The door of the command line: every way in which a command may end, its message and its exit status."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import typer

from image_models.errors import ImageError
from stack.errors import DermstackError
from tabular.errors import TabularError

EXTRAS = {  # what a user installs for whom
    "[image]' to work on images": {
        "torch", "torchvision", "timm", "albumentations", "cv2", "simplejpeg", "pydicom", "gdcm", "imagecodecs", "h5py",
        "google_crc32c", "kornia", "torchcam",
    },
    "[onnx]' to export networks": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "[image,app]' for the local page": {"starlette", "uvicorn"},
}  # fmt: skip
INTERRUPTED, TERMINATED = 130, 143  # what a shell expects after Ctrl-C and SIGTERM
GO_ON = "run the same command again, it goes on from what is complete"
_NO_RIGHT = "this user has no right to it: give it, or name another folder (in a config `runs` and `cache`)"
IN_THE_WAY = {  # what a disk may answer
    errno.ENOSPC: "the disk is full: free some room",
    errno.EDQUOT: "the disk quota is used up: free some room",
    errno.EFBIG: "the file is larger than the system allows: raise the limit",
    errno.EROFS: "the file system is read-only: name another folder (in a config `runs` and `cache`)",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EIO: "the disk can't read or write it (input/output error): look after the disk",
}


def end_well(app: Callable[[], object]) -> None:
    """Run the command line ``app``: a mistake or a disk in the way is one message and exit status 2, Ctrl-C and SIGTERM
    end every step as it should be ended, and say how to go on."""
    terminated = threading.Event()

    def terminate(number: int, frame: object) -> None:
        terminated.set()
        signal.signal(number, signal.SIG_IGN)  # a second one shall not cut the first one's work short
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        _run(app, terminated)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(app: Callable[[], object], terminated: threading.Event) -> None:
    try:
        app()
    except (DermstackError, ImageError, TabularError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        lacking = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if lacking in modules), None)
        if extra is None:
            raise
        typer.echo(f"error: {error.name} is not installed: pip install 'dermstack{extra}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in IN_THE_WAY:
            raise
        typer.echo(f"error: {error.filename or 'a file'}: {IN_THE_WAY[error.errno]}; {GO_ON}", err=True)
        sys.exit(2)
    except BrokenProcessPool as error:
        if type(error).__name__ != "TerminatedWorkerError":
            raise  # what a worker could not read or send: no user's mistake
        typer.echo(
            "error: a worker process was killed, as the system does when memory runs out: lower `n_jobs` or the batch "
            f"size where that is why; {GO_ON}",
            err=True,
        )
        sys.exit(2)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        from image_models.processes import end_workers

        end_workers()  # typer has made it of a KeyboardInterrupt
        typer.echo(f"{'terminated' if terminated.is_set() else 'interrupted'}: {GO_ON}", err=True)
        sys.exit(TERMINATED if terminated.is_set() else INTERRUPTED)
