"""Writing files so that they are there whole or not at all, also after a power cut."""

import os
import secrets
from pathlib import Path

from circuitspex.errors import ResultError


def write_atomically(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Args:
        path: The file to write or replace; its folder must exist.
        data: All of its contents.
        durable: Wait until it is on the disk. Otherwise a power cut within the next seconds may
            leave a file of that name without its contents.
    """
    path = Path(path)
    # The random part keeps two processes that write the same file out of each other's way.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_result(path: str | Path, data: bytes) -> None:
    """Write a file with :func:`write_atomically`, for people: what fails says what to do.

    Args:
        path: The file to write or replace; its folder must exist.
        data: All of its contents.

    Raises:
        ResultError: If it cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ResultError(
            f"{path} cannot be written: {error}. Choose an existing folder with free space."
        ) from error


def make_folder(folder: str | Path) -> Path:
    """Make a folder for results, and those above it, if it is not there.

    Args:
        folder: The folder.

    Returns:
        The same.

    Raises:
        ResultError: If it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{folder} cannot be made: {error}. Choose another folder.") from error
    return Path(folder)


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable: renames and removals are not until it is synced."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        fsync_file(folder)


def fsync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
