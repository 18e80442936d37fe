"""Reading a picture's file by the path that a row holds.

A path comes from whoever may write SQL, and the file is read as the server's user. So only what
lies inside the allowed folders is opened, and nothing but regular files. A path that leads outside
by its name is not even looked at, so neither an error nor the time it takes tells what is there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from clickhouse_clip.udf.errors import PictureError

_OUTSIDE = (
    "the path is outside the folders that pictures may be read from;"
    " `install-udfs --image-root FOLDER` allows one more (setting image_roots)"
)

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "the server's user may not read it",
    errno.EPERM: "the server's user may not read it",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "too many symbolic links",
}

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link that leads nowhere",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_picture(path: bytes, roots: Sequence[Path], *, max_bytes: int) -> bytes:
    """The bytes of the file at `path`: at most `max_bytes` of them.

    A relative path starts at `roots[0]`; an absolute one begins with one of `roots`, by that name
    or by its real one. Symbolic links below are followed, and where they end must lie inside one of
    `roots`. Raises `PictureError` with the reason; the caller adds row and path.
    """
    if not roots:
        raise PictureError("no folder is allowed to read pictures from (setting image_roots)")
    if not path:
        raise PictureError("the path is empty")
    if b"\0" in path:
        raise PictureError("the path contains a NUL byte")
    named = [os.path.normpath(os.fsencode(root)) for root in roots]
    allowed = [os.path.realpath(root) for root in named]
    # `..` is taken out by name: left to the file system, `/outside/x/../../root/a.jpg` would tell
    # whether /outside/x is there.
    path = os.path.normpath(b"/" + os.path.join(allowed[0], path).lstrip(b"/"))
    if not _inside(path, (*named, *allowed)):
        raise PictureError(_OUTSIDE)
    try:
        with os.fdopen(_open(path, allowed), "rb") as file:
            # Room for all that a file may have would cost more than reading one of a usual size.
            size = min(os.fstat(file.fileno()).st_size, max_bytes)
            data = file.read(size + 1)
            if len(data) > size:  # too large, or it has grown
                data += file.read(max_bytes + 1 - len(data))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "the file cannot be read")
        raise PictureError(reason) from error
    if len(data) > max_bytes:
        raise PictureError(f"the file is larger than {max_bytes} bytes (setting max_bytes)")
    return data


def _open(path: bytes, allowed: Sequence[bytes]) -> int:
    real = os.path.realpath(path)
    if not _inside(real, allowed):
        raise PictureError(_OUTSIDE)
    # What is on the way may become a link between that check and the opening. So it is opened as a
    # mere location, which reads nothing and waits for no pipe; only once the kernel says where that
    # location really is and what it is, that same file is opened for reading.
    location = os.open(real, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        handle = f"/proc/self/fd/{location}"
        if not _inside(os.fsencode(os.readlink(handle)), allowed):
            raise PictureError(_OUTSIDE)
        kind = stat.S_IFMT(os.fstat(location).st_mode)
        if kind != stat.S_IFREG:
            raise PictureError(f"it is {_KINDS.get(kind, 'no regular file')}, not a file")
        return os.open(handle, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(location)


def _inside(path: bytes, allowed: Sequence[bytes]) -> bool:
    return any(path.startswith(root.rstrip(b"/") + b"/") for root in allowed)
