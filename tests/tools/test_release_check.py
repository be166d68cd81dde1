"""The release checklist on trees and wheels that can be released, and on those that cannot."""

import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock import __version__
from tools.release_check import check_tree, check_wheel, main

ROOT = Path(__file__).parent.parent.parent
VERSION = __version__
TAG = f"v{VERSION}"


def git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "tag.gpgSign=false")
    subprocess.run(["git", "-C", str(tree), *identity, *arguments], check=True, capture_output=True)


def edit(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text(encoding="utf-8")
    (tree / name).write_text(re.sub(old, new, text), encoding="utf-8")


def commit(tree: Path) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "x", "--no-verify")
    git(tree, "tag", "--force", "--annotate", TAG, "--message", "x")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own with what a release needs: this tree, made ready."""
    tree = tmp_path_factory.mktemp("released")
    names = ("CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "mkdocs.yml", "pyproject.toml")
    folders = (".github", ".gitignore", "clients", "penstock")
    listed = subprocess.run(
        [
            "git",
            "-C",
            str(ROOT),
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            *names,
            *folders,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION} - 2026-12-01\n\n- All.\n")
    edit(tree, "SECURITY.md", "SECURITY-CONTACT-NOT-SET", "security@example.org")
    readmes = ("clients/javascript/README.md", "clients/python/README.md")
    for name in ("mkdocs.yml", ".github/ISSUE_TEMPLATE/config.yml", *readmes):
        edit(tree, name, "OWNER", "somebody")
    git(tree, "init", "--quiet")
    commit(tree)
    return tree


@pytest.fixture
def tree(released: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    git(tmp_path, "clone", "--quiet", str(released), "tree")
    return tmp_path / "tree"


def failures(tree: Path, version: str = VERSION) -> list[str]:
    return [item.next_step for item in check_tree(tree, version) if item.next_step]


@pytest.mark.timeout(300)
def test_a_tree_that_is_ready_passes_every_item(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    assert main([VERSION]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "FAIL" not in said
    items = ("makes a wheel", "rill.gguf", "the licence", "Name is penstock-server", "twine")
    of_clients = ("Name is penstock-client", "npm packs", "the npm package has index.d.ts")
    for item in (*items, *of_clients):
        assert re.search(f"^pass  .*{item}", said, re.MULTILINE)


def test_a_tree_that_is_not_ready_is_not_built(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    assert main(["9.9.9"]) == 1
    said = capsys.readouterr().out
    assert (
        said.count("FAIL") == said.count("next:") == 4
    )  # the code, the JavaScript client, the changelog, the tag
    assert "not built" in said
    assert "makes a wheel" not in said


def spoil_version(tree: Path) -> None:
    edit(tree, "penstock/__init__.py", '__version__ = ".*"', '__version__ = "0.0.0"')
    commit(tree)


def spoil_changelog(tree: Path) -> None:
    edit(tree, "CHANGELOG.md", rf"## {VERSION} - .*", f"## {VERSION}")
    commit(tree)


def leave_a_change_unreleased(tree: Path) -> None:
    edit(tree, "CHANGELOG.md", f"## {VERSION}", f"## Unreleased\n\n- More.\n\n## {VERSION}")
    commit(tree)


def forget_the_tag(tree: Path) -> None:
    git(tree, "tag", "--delete", TAG)


def commit_after_the_tag(tree: Path) -> None:
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "x")


def leave_a_file(tree: Path) -> None:
    (tree / "notes.txt").touch()


def forget_the_contact(tree: Path) -> None:
    edit(tree, "SECURITY.md", "$", "SECURITY-CONTACT-NOT-SET")
    commit(tree)


def forget_the_repository(tree: Path) -> None:
    edit(tree, "mkdocs.yml", "$", "# https://github.com/OWNER/penstock")
    commit(tree)


@pytest.mark.parametrize(
    ("spoil", "next_step"),
    [
        (spoil_version, "it is 0.0.0: change penstock/__init__.py"),
        (spoil_changelog, "rename its section Unreleased"),
        (leave_a_change_unreleased, f"move it into the section of {VERSION}"),
        (forget_the_tag, f"git tag -a {TAG}"),
        (commit_after_the_tag, "tag this commit"),
        (leave_a_file, "notes.txt"),
        (forget_the_contact, "put a mailbox"),
        (forget_the_repository, "replace github.com/OWNER/ in mkdocs.yml"),
    ],
)
def test_one_fault_fails_one_item(
    tree: Path, spoil: Callable[[Path], None], next_step: str
) -> None:
    assert failures(tree) == []
    spoil(tree)
    (said,) = failures(tree)
    assert next_step in said


def test_a_version_is_written_in_full(tree: Path) -> None:
    assert "write it as 0.2.0" in failures(tree, "v1")


GOOD_WHEEL = {
    "penstock/model/rill.gguf": "",
    "penstock/page/index.html": "",
    "penstock/page/client/index.js": "",
    "penstock/py.typed": "",
    "p.dist-info/licenses/LICENSE": "",
    "p.dist-info/METADATA": "Name: penstock-server\nVersion: 1.2.3\nLicense-Expression: X\n",
}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"penstock/model/rill.gguf": None}, ["the wheel has penstock/model/rill.gguf"]),
        ({"penstock/py.typed": None}, ["the wheel has penstock/py.typed"]),
        ({"p.dist-info/licenses/LICENSE": None}, ["the wheel has the licence"]),
        ({"tests/test_x.py": ""}, ["the wheel has only the package"]),
        (
            {"p.dist-info/METADATA": "Name: penstock\nVersion: 1.2.2\nLicense-Expression: X\n"},
            ["Name is penstock-server", "Version is 1.2.3"],
        ),
    ],
)
def test_a_wheel_must_be_whole(
    tmp_path: Path, change: dict[str, str | None], failed: list[str]
) -> None:
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (GOOD_WHEEL | change).items():
            if content is not None:
                archive.writestr(name, content)
    assert [item.what for item in check_wheel(wheel, "1.2.3") if item.next_step] == failed
