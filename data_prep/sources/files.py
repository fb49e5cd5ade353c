"""Images that lie in files below a root folder: reading them, and never what lies outside of it."""

# File names need not be text, so paths are bytes here, which pathlib does not know:
# ruff: noqa: PTH112, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from data_prep.check import RejectionError
from data_prep.sources import Stamp

NO_FILE: Final = Stamp(-1, -1)
# O_NONBLOCK: opening a named pipe would wait for somebody to write into it
FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
MAX_OPEN: Final = 256                   # folders
# of these, the file itself is the cause; of any other error it is the machine (EIO, ESTALE, EMFILE, ...)
_OF_THE_FILE: Final = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
    errno.EISDIR: "unreadable",
    errno.ENXIO: "unreadable",          # a socket
    errno.ELOOP: "unreadable",
}


def text(name: bytes) -> str:
    """A file name as text, for keys and tables; bytes that are no UTF-8 become \\xNN."""
    return name.decode("utf-8", "backslashreplace")


class _Folder:
    """A folder's descriptor, closed when nobody holds it any more: another thread may be using it meanwhile."""

    def __init__(self, path: bytes) -> None:
        self.descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:     # at exit, `os` may be gone before this
        if hasattr(self, "descriptor"):
            close(self.descriptor)


class FileReader:
    """Reads image files; a place is a path relative to the root, or an absolute one, as the file system spells it.

    Several threads may read at a time.
    """

    def __init__(self, root: Path, allow_outside: bool) -> None:
        """Opens nothing yet.

        Args:
            root: an existing folder.
            allow_outside: also read what paths and links lead to outside of it.
        """
        self._root = os.fsencode(root.absolute())
        self._real_root = os.path.realpath(self._root)
        self._allow_outside = allow_outside
        self._flags = FLAGS if allow_outside else FLAGS | os.O_NOFOLLOW
        self._inside: dict[bytes, bool] = {}        # folder -> whether it lies below the root, all links followed
        self._opened: dict[bytes, _Folder] = {}     # by the folder as places spell it

    def __reduce__(self) -> tuple[type[FileReader], tuple[Path, bool]]:
        """Travels to a worker without what is open."""
        return FileReader, (Path(os.fsdecode(self._root)), self._allow_outside)

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """See `Reader.read`."""
        folder, slash, name = place.rpartition(b"/")
        try:
            directory = self._opened.get(folder or slash)
            if directory is None:
                directory = self._open_folder(folder or slash)
            descriptor = os.open(name, self._flags, dir_fd=directory.descriptor)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise self._explain(error, place) from error
            descriptor = self._open_link(place)
        except ValueError as error:                 # a path with a zero byte in it
            raise RejectionError("missing", str(error)) from error
        try:
            found = os.fstat(descriptor)
            size = found.st_size
            if not stat.S_ISREG(found.st_mode):
                raise RejectionError("unreadable", "not a regular file")
            if size > max_bytes:
                raise RejectionError("too_large", f"{size} bytes, the limit is {max_bytes}")
            data = os.read(descriptor, size)
            while len(data) < size:                 # a network file system may return less at a time
                more = os.read(descriptor, size - len(data))
                if not more:
                    break
                data += more
            return data, Stamp(size, found.st_mtime_ns)
        except OSError as error:
            raise self._explain(error, place) from error
        finally:
            os.close(descriptor)

    def stamp(self, place: bytes) -> Stamp:
        """See `Reader.stamp`."""
        try:
            found = os.stat(os.path.join(self._root, place))
        except (OSError, ValueError):
            return NO_FILE
        return Stamp(found.st_size, found.st_mtime_ns)

    def may_enter(self, folder: bytes) -> bool:
        """Whether a folder is inside the root, or need not be."""
        return self._allow_outside or self.is_inside(folder)

    def is_inside(self, folder: bytes) -> bool:
        """Whether a folder, all links followed, is the root or lies below it."""
        known = self._inside.get(folder)
        if known is None:
            real = os.path.realpath(folder)
            known = real == self._real_root or real.startswith(self._real_root.rstrip(b"/") + b"/")
            self._inside[folder] = known
        return known

    def _open_folder(self, folder: bytes) -> _Folder:
        """A folder by whose descriptor its files are opened: shorter than by their whole paths, and safer."""
        path = os.path.join(self._root, folder)
        if not self.may_enter(path):
            raise RejectionError("outside", "its folder lies outside of SOURCE")
        if len(self._opened) >= MAX_OPEN:
            self._opened.clear()
        opened = self._opened[folder] = _Folder(path)
        return opened

    def _open_link(self, place: bytes) -> int:
        target = os.path.realpath(os.path.join(self._root, place))
        if not self.may_enter(os.path.dirname(target)):
            raise RejectionError("outside", f"a link to {text(target)}")
        try:
            return os.open(target, self._flags)
        except OSError as error:
            raise self._explain(error, place) from error

    def _explain(self, error: OSError, place: bytes) -> Exception:
        reason = _OF_THE_FILE.get(error.errno or 0)
        if reason is None or not os.path.isdir(self._root):     # a file system that is gone loses every file
            path = os.path.join(self._root, place)
            return OSError(error.errno, f"{error.strerror}, reading", os.fsdecode(path))
        return RejectionError(reason, error.strerror or "")
