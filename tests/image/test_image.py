"""Containers of the image: their user, what they may write, their health and their end."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from penstock import __version__
from tests.image.build import Image
from tests.image.container import Container, running
from tests.support.keyed import Keys
from tests.support.raw import Connection

USER = 10001


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose files a container's user can reach."""
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    return tmp_path


@pytest.fixture
def keys(folder: Path) -> Keys:
    """Return keys in a file that a container's user can read."""
    (folder / "etc").mkdir()
    made = Keys(folder / "etc" / "keys.toml", "alice")
    made.path.chmod(0o644)
    return made


def serve(image: Image, folder: Path, *flags: str) -> AbstractContextManager[Container]:
    """Run the built-in model in a container, with the keys in `folder`."""
    command = ("serve", "--keys=keys.toml", *flags)
    return running(image, folder, *command, mounts={"/etc/penstock": folder / "etc"})


def test_a_stream_is_answered_by_an_ordinary_user_who_can_write_only_models(
    image: Image, folder: Path, keys: Keys
) -> None:
    with serve(image, folder) as container:
        assert container.serves(), container.said
        assert container.health() == 0
        with Connection(container.port).send(keys.generate("alice", max_tokens=5)) as client:
            assert client.head().status == 200
            tokens = [event for event in client.events() if not event["finished"]]
        assert len(tokens) == 5
        server, engine, *_ = container.processes()
        for process in (server, engine):
            assert set(process.uids()) == {USER}
            assert set(process.gids()) == {USER}
        assert container.run("touch", "/cache/model") == 0
        assert container.run("touch", "/etc/penstock/keys.toml") != 0
        assert container.run("touch", "/opt/penstock/bin/penstock") != 0


def test_a_stopped_container_is_unhealthy_and_ends_its_streams_first(
    image: Image, folder: Path, keys: Keys
) -> None:
    num_tokens = 120
    mock = ("--engine=mock", "--mock-interval=0.05", "--engine-arg=length=100000")
    with serve(image, folder, *mock) as container:
        assert container.serves(), container.said
        with Connection(container.port).send(
            keys.generate("alice", max_tokens=num_tokens)
        ) as client:
            assert client.head().status == 200
            events = client.events()
            first = next(events)
            container.stop()
            # The next requests find the server draining, as the health check does.
            assert container.health() == 1
            assert container.process.poll() is None
            tokens = [event for event in (first, *events) if not event["finished"]]
        assert len(tokens) == num_tokens
        assert container.wait() == 0, container.said


def test_without_keys_a_container_serves_nobody(image: Image, folder: Path) -> None:
    with running(image, folder) as container:
        assert container.wait() == 1
        assert "--keys" in container.said, container.said


def test_the_image_makes_keys_and_has_this_version(image: Image, folder: Path) -> None:
    with running(image, folder, "--version") as container:
        assert container.wait() == 0
        assert __version__ in container.said
    with running(image, folder, "key", "alice") as container:
        assert container.wait() == 0
        assert "[keys.alice]" in container.said


def test_the_image_has_neither_pip_nor_the_source(image: Image) -> None:
    assert not list(image.files.glob("opt/penstock/bin/pip*"))
    assert not (image.files / "source").exists()
    assert not list((image.files / "var/lib/apt/lists").glob("*"))
