"""Images that lie in files below a root folder: reading them, and never what lies outside of it."""

# File names need not be text, so paths are bytes here, which pathlib does not know:
# ruff: noqa: PTH112, PTH114, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from data_prep.check import RejectionError
from data_prep.sources import Stamp

NO_FILE = Stamp(-1, -1)
# of these, the file itself is the cause; of any other error it is the machine (EIO, ESTALE, EMFILE, ...)
_OF_THE_FILE = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
    errno.EISDIR: "unreadable",
    errno.ENXIO: "unreadable",          # a socket
    errno.ELOOP: "unreadable",
}


class FileReader:
    """Reads image files; a place is a path relative to the root, or an absolute one, as the file system spells it."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        """Opens nothing yet.

        Args:
            root: an existing folder.
            allow_outside: also read what paths and links lead to outside of it.
        """
        self._root = os.fsencode(root.absolute())
        self._real_root = os.path.realpath(self._root)
        self._allow_outside = allow_outside
        self._inside: dict[bytes, bool] = {}        # folder -> whether it lies below the root, all links followed

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """See `Reader.read`."""
        path = place if place[:1] == b"/" else self._root + b"/" + place        # as join does, but fast
        try:
            descriptor = self._open(path)
        except OSError as error:
            raise self._explain(error, path) from error
        except ValueError as error:                 # a path with a zero byte in it
            raise RejectionError("missing", str(error)) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise RejectionError("unreadable", "not a regular file")
            if found.st_size > max_bytes:
                raise RejectionError("too_large", f"{found.st_size} bytes, the limit is {max_bytes}")
            data = os.read(descriptor, found.st_size + 1)       # one more than there should be: the end is seen
            while 0 < len(data) < found.st_size:    # a network file system may return less at a time
                more = os.read(descriptor, found.st_size - len(data))
                if not more:
                    break
                data += more
            return data, Stamp(found.st_size, found.st_mtime_ns)
        except OSError as error:
            raise self._explain(error, path) from error
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

    def _open(self, path: bytes) -> int:
        # O_NONBLOCK: opening a named pipe would wait for somebody to write into it
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        if self._allow_outside:
            return os.open(path, flags)
        folder = path[: path.rindex(b"/")]
        if not self._inside.get(folder) and not self.is_inside(folder):
            raise RejectionError("outside", "its folder lies outside of SOURCE")
        try:
            return os.open(path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP or not os.path.islink(path):
                raise
        target = os.path.realpath(path)
        if not self.is_inside(os.path.dirname(target)):
            raise RejectionError("outside", f"a link to {os.fsdecode(target)}")
        return os.open(target, flags | os.O_NOFOLLOW)

    def _explain(self, error: OSError, path: bytes) -> Exception:
        reason = _OF_THE_FILE.get(error.errno or 0)
        if reason is None or not os.path.isdir(self._root):     # a file system that is gone loses every file
            return OSError(error.errno, f"{error.strerror}, reading", os.fsdecode(path))
        return RejectionError(reason, error.strerror or "")
