"""Where initial weights come from: files of both kinds, URLs with their hash, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from twostage.data.schema import InputError
from twostage.runtime import initial_weights
from twostage.runtime.initial_weights import read_initial_weights, read_tensors
from twostage.runtime.world import World

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
TENSORS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "bn.num_batches_tracked": torch.tensor(5)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return sorted(a) == sorted(b) and all(torch.equal(a[name], b[name]) for name in a)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(source: str | Path, model_name: str = "resnet18") -> initial_weights.InitialWeights:
    return read_initial_weights(str(source), model_name, WORLD)


def save_legacy(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.pth", lambda path: torch.save(TENSORS, path)),
        ("old.pth", save_legacy),
        ("checkpoint.pt", lambda path: torch.save({"epoch": 3, "state_dict": TENSORS}, path)),
        ("a.safetensors", lambda path: safetensors.torch.save_file(TENSORS, path)),
        ("no_ending", lambda path: safetensors.torch.save_file(TENSORS, path, {"twostage": "{}"})),
    ],
)
def test_files_of_either_kind_are_read_and_known_by_their_digest(tmp_path: Path, name: str, save: object) -> None:
    path = tmp_path / name
    assert callable(save)
    save(path)
    found = read(path)
    assert same(found.tensors, TENSORS)
    assert (found.digest, found.where) == (digest(path), str(path))


class Evil:
    """What a pickle can do to who opens it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrapped", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, wrapped: bool) -> None:
    evil = Evil(tmp_path / "was_here")
    torch.save({"state_dict": TENSORS, "extra": evil} if wrapped else evil, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth is damaged, or holds more than tensors.*state_dict"):
        read(tmp_path / "a.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(evil))
    with pytest.raises(InputError, match=r"plain\.pkl"):
        read(tmp_path / "plain.pkl")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
@pytest.mark.parametrize("left", [0, 1, 8, 9, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kind: str, left: float) -> None:
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    with pytest.raises(InputError, match=f"weights.{kind}"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_something_else_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.weights: .*weights\.pth"):
        read(tmp_path / "weights.pth")


def test_no_such_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.weights: .*absent\.pth does not exist; name a \.pth or safetensors"):
        read(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a folder, not a file"):
        read(tmp_path)


class Server:
    """A web server that counts what is asked for."""

    def __init__(self, folder: Path) -> None:
        requests: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                requests.append(self.path)

        self.requests = requests
        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub keeps what it downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def serve(tmp_path: Path, name: str) -> tuple[str, str]:
    """Puts a file on the server; its name with the hash, and the hash."""
    path = tmp_path / "served" / "new"
    torch.save(TENSORS, path)
    whole = digest(path)
    target = path.with_name(name.format(hash=whole[:8]))
    path.rename(target)
    return target.name, whole


@pytest.mark.parametrize("by", ["name", "fragment", "whole"])
def test_a_url_is_fetched_once_and_its_hash_checked(tmp_path: Path, server: Server, cache: Path, by: str) -> None:
    name, whole = serve(tmp_path, "resnet18-{hash}.pth" if by == "name" else "model.pth")
    url = f"{server.url}/{name}"
    url += {"name": "?download=true", "fragment": f"#sha256={whole[:12].upper()}", "whole": f"#sha256={whole}"}[by]
    for _ in range(2):
        found = read(url)
        assert same(found.tensors, TENSORS)
        assert (found.digest, Path(found.where)) == (whole, cache / name)
    assert len(server.requests) == 1
    assert [path.name for path in cache.iterdir()] == [name]


def test_another_content_than_the_hash_says_is_not_kept(tmp_path: Path, server: Server, cache: Path) -> None:
    torch.save(TENSORS, tmp_path / "served" / "resnet18-01234567.pth")
    with pytest.raises(InputError, match=r"resnet18-01234567\.pth: invalid hash value.*the file there is another one"):
        read(f"{server.url}/resnet18-01234567.pth")
    assert list(cache.iterdir()) == []


def test_a_damaged_copy_is_named(tmp_path: Path, server: Server, cache: Path) -> None:
    name, whole = serve(tmp_path, "resnet18-{hash}.pth")
    cache.mkdir(parents=True)
    (cache / name).write_bytes(b"half of it")
    with pytest.raises(InputError, match=f"{name}, the copy of .*has the SHA-256 .*, not {whole[:8]}….*delete it"):
        read(f"{server.url}/{name}")


def test_where_nothing_answers_the_message_says_where_to_put_the_file(server: Server, cache: Path) -> None:
    with pytest.raises(InputError, match=r"cannot download .*/absent-01234567\.pth .*404.*put it at .*checkpoints"):
        read(f"{server.url}/absent-01234567.pth")
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(InputError, match=r"cannot download .*refused.*download it elsewhere"):
        read(f"{server.url}/absent-01234567.pth")


@pytest.mark.parametrize(
    "rest",
    ["a.pth", "a.pth#sha256=123", "a.pth#md5=0123456789", "#sha256=01234567", "..#sha256=01234567", ".a-01234567.b"],
)
def test_a_url_without_hash_or_name_is_refused_before_it_is_fetched(server: Server, cache: Path, rest: str) -> None:
    with pytest.raises(InputError, match="add the file's hash, as …/NAME#sha256=HEX"):
        read(f"{server.url}/{rest}")
    assert not server.requests and not cache.exists()


def test_imagenet_means_torchvisions_file_for_this_network(
    tmp_path: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, whole = serve(tmp_path, "resnet18-{hash}.pth")
    monkeypatch.setitem(initial_weights.IMAGENET_URLS, "resnet18", f"{server.url}/{name}")
    assert read("imagenet").digest == whole
    with pytest.raises(InputError, match=r"no ImageNet weights are known for model\.name 'mlp', only for alexnet, res"):
        read("imagenet", "mlp")
    with pytest.raises(InputError, match=r"network 'timm:x': 'timm' is not installed|timm has no network 'x'"):
        read("imagenet", "timm:x")


def test_imagenet_urls_carry_their_hash() -> None:
    for name, url in initial_weights.IMAGENET_URLS.items():
        assert initial_weights.HASH_IN_NAME.search(url), name
        assert Path(url).name.startswith(name)
