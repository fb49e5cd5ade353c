"""Downloads from a server of this test that breaks, lies and forgets: a file is whole and right, or not there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_prep import download
from data_prep.__main__ import main
from data_prep.download import File, md5_of
from tests.data_prep.shared_data import shared_file

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = "t10k-images-idx3-ubyte.gz"


@dataclass
class Mirror:
    """How the server behaves below one path, and what it was asked."""

    content: bytes = CONTENT
    breaks_after: list[int] = field(default_factory=list)
    """bytes after which the next answers break off"""
    errors: list[int] = field(default_factory=list)
    """status of the next answers"""
    knows_ranges: bool = True
    says_length: bool = True
    redirect: str = ""
    pause: float = 0.0
    asked: list[str] = field(default_factory=list)
    """the Range header of each request"""
    sent: int = 0
    """bytes"""


class Handler(BaseHTTPRequestHandler):
    mirrors: dict[str, Mirror]

    def do_GET(self) -> None:
        mirror = self.mirrors[self.path.split("/")[1]]
        asked = self.headers.get("Range", "")
        mirror.asked.append(asked)
        if mirror.errors:
            self.send_error(mirror.errors.pop(0))
            return
        if mirror.redirect:
            self.send_response(302)
            self.send_header("Location", mirror.redirect)
            self.end_headers()
            return
        content = mirror.content
        if asked and mirror.knows_ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            content = content[begin:]
        else:
            self.send_response(200)
        if mirror.says_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        end = mirror.breaks_after.pop(0) if mirror.breaks_after else len(content)
        for begin in range(0, min(end, len(content)), 20_000):
            try:
                mirror.sent += self.wfile.write(content[begin : min(end, begin + 20_000)])
            except ConnectionError:
                break
            time.sleep(mirror.pause)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Server:
    url: str
    mirrors: dict[str, Mirror]

    def add(self, name: str, mirror: Mirror) -> str:
        self.mirrors[name] = mirror
        return f"{self.url}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    handler = type("Here", (Handler,), {"mirrors": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(download, "PAUSE", 0.0)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setitem(download.FILES, "mnist", (File(NAME, len(CONTENT), hashlib.md5(CONTENT).hexdigest()),))
        yield Server(f"http://127.0.0.1:{running.server_address[1]}", handler.mirrors)
        running.shutdown()
        thread.join()


def get(out: Path, *mirrors: str) -> int:
    return main(["download", "mnist", str(out), *(word for mirror in mirrors for word in ("--mirror", mirror))])


def the_file(out: Path) -> bytes:
    assert [path.name for path in out.iterdir()] == [NAME], "something was left behind"
    return (out / NAME).read_bytes()


def test_a_file_comes_whole_and_is_not_fetched_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.add("good", Mirror())
    assert get(tmp_path / "a" / "b", url) == 0
    assert the_file(tmp_path / "a" / "b") == CONTENT
    assert f"{len(CONTENT)} bytes from {url}/{NAME}" in capsys.readouterr().out
    assert get(tmp_path / "a" / "b", url) == 0
    assert "is there already" in capsys.readouterr().out
    assert server.mirrors["good"].asked == [""]


def test_broken_connections_are_gone_on_with(server: Server, tmp_path: Path) -> None:
    breaks = [100_000, 0, 0, 0, 50_000, 149_999]        # three times nothing, but not four
    url = server.add("shaky", Mirror(breaks_after=list(breaks)))
    assert get(tmp_path, url) == 0
    assert the_file(tmp_path) == CONTENT
    begins = [0, 100_000, 100_000, 100_000, 100_000, 150_000, 299_999]
    assert server.mirrors["shaky"].asked == [f"bytes={begin}-" if begin else "" for begin in begins]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    url = server.add("old", Mirror(knows_ranges=False, breaks_after=[100_000, 120_000]))
    assert get(tmp_path, url) == 0
    assert the_file(tmp_path) == CONTENT


def test_what_a_killed_run_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    url = server.add("slow", Mirror(pause=0.05))
    code = (
        "import sys; from data_prep import download; from data_prep.__main__ import main; "
        f"download.FILES['mnist'] = (download.File({NAME!r}, {len(CONTENT)}, {hashlib.md5(CONTENT).hexdigest()!r}),); "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "download", "mnist", str(tmp_path), "--mirror", url]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    part = tmp_path / f".{NAME}.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 0):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9, "it ended before it was killed: the test says nothing"
    size = part.stat().st_size
    assert 0 < size < len(CONTENT) and not (tmp_path / NAME).exists()
    server.mirrors["slow"].pause = 0
    assert get(tmp_path, url) == 0
    assert the_file(tmp_path) == CONTENT
    assert server.mirrors["slow"].asked[-1] == f"bytes={size}-"


def test_a_wrong_beginning_is_given_up(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.part").write_bytes(b"<html>")
    assert get(tmp_path, server.add("good", Mirror())) == 0
    assert the_file(tmp_path) == CONTENT
    assert server.mirrors["good"].asked == ["bytes=6-", ""]


WRONG = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        (Mirror(content=WRONG), f"another file: md5 {hashlib.md5(WRONG).hexdigest()}, expected "),
        (Mirror(content=WRONG, breaks_after=[10] * 9), f"another file: md5 {hashlib.md5(WRONG).hexdigest()}"),
        (Mirror(content=b"<html>not found</html>"), "another file: 22 bytes, expected 300000"),
        (Mirror(content=b"<html>not found</html>", says_length=False), "HTTP 416"),
        (Mirror(content=b"<html>", says_length=False, knows_ranges=False), "the connection ended at byte 6 of 300000"),
        (Mirror(content=CONTENT * 3), "another file: 900000 bytes, expected 300000"),
        (Mirror(content=CONTENT * 3, says_length=False), "another file: md5 of a longer file, expected"),
        (Mirror(errors=[404]), "HTTP 404 Not Found"),
        (Mirror(errors=[503] * 20), "HTTP 503 Service Unavailable"),
        (Mirror(breaks_after=[0] * 20), "the connection ended at byte 0 of 300000"),
    ],
)
def test_a_useless_mirror_is_named_and_the_next_one_is_tried(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], mirror: Mirror, message: str
) -> None:
    bad = server.add("bad", mirror)
    assert get(tmp_path / "one", bad) == 1
    error = capsys.readouterr().err
    assert f"{bad}/{NAME}: {message}" in error and "could not be had" in error and "Another place: --mirror" in error
    assert not (tmp_path / "one" / NAME).exists()
    mirror.asked.clear()
    assert get(tmp_path / "two", bad, server.add("good", Mirror())) == 0
    assert the_file(tmp_path / "two") == CONTENT


def test_a_mirror_that_does_not_end_cannot_fill_the_disk(server: Server, tmp_path: Path) -> None:
    assert get(tmp_path, server.add("endless", Mirror(content=CONTENT * 300, says_length=False))) == 1
    assert server.mirrors["endless"].sent < 30_000_000
    assert not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_and_a_redirection_followed(server: Server, tmp_path: Path) -> None:
    server.add("good", Mirror())
    url = server.add("busy", Mirror(errors=[503, 429], redirect=f"{server.url}/good/{NAME}"))
    assert get(tmp_path, url) == 0
    assert the_file(tmp_path) == CONTENT
    assert len(server.mirrors["busy"].asked) == 3


def test_nobody_there(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get(tmp_path, "http://127.0.0.1:9") == 1
    assert "Connection refused" in capsys.readouterr().err


def test_wrong_arguments(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "mnits", str(tmp_path)]) == 2
    assert "did you mean 'mnist'" in capsys.readouterr().err
    for url in ("file:///etc", "host/folder", "http://"):
        assert get(tmp_path, url) == 2
        assert f"--mirror {url}: give a URL as https://host/folder/" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert get(tmp_path / "file", server.url) == 2
    (tmp_path / NAME).write_bytes(b"other")
    assert get(tmp_path, server.add("good", Mirror())) == 2
    error = capsys.readouterr().err
    assert f"{NAME}: md5 {hashlib.md5(b'other').hexdigest()}, expected {hashlib.md5(CONTENT).hexdigest()}: rem" in error
    assert (tmp_path / NAME).read_bytes() == b"other"


def test_a_full_disk_is_not_taken_for_a_broken_connection(server: Server, tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); " \
           "import sys; from data_prep.__main__ import main; sys.exit(main())"
    url = server.add("any", Mirror(content=bytes(download.FILES["cifar10"][0].size // 100), says_length=False))
    command = [sys.executable, "-c", code, "download", "cifar10", str(tmp_path), "--mirror", url]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "File too large" in result.stderr
    assert len(server.mirrors["any"].asked) == 1


def test_sizes_and_sums_are_those_of_the_originals() -> None:
    for file in download.FILES["mnist"]:
        path = shared_file(f"mnist/{file.name}")
        assert (path.stat().st_size, md5_of(path)) == (file.size, file.md5)
