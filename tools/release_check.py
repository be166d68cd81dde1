"""The release checklist: `python -m tools.release_check 0.2.0`, or `make release-check ARGS=0.2.0`.

In: a version, and the tree in the current directory. Out: each item with pass or FAIL and the next
step; exit code 1 if an item fails. It changes nothing. RELEASING.md has the steps of a release.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

NAME = "penstock-server"
CLIENT_NAME = "penstock-client"
CONTACT_NOT_SET = "SECURITY-CONTACT-NOT-SET"
REPOSITORY_NOT_SET = "github.com/OWNER/"
IN_THE_WHEEL = (
    "penstock/model/rill.gguf",
    "penstock/page/index.html",
    "penstock/page/client/index.js",
    "penstock/py.typed",
)
IN_THE_CLIENT_S_WHEEL = ("penstock_client/client/client.py", "penstock_client/py.typed")
IN_THE_NPM_PACKAGE = ("LICENSE", "README.md", "index.d.ts", "src/index.js")
NOT_IN_THE_WHEEL = ("tests", "tools", "training", "benchmarks")


@dataclass(frozen=True)
class Item:
    """An item of the checklist. `next_step` is empty if the item passes."""

    what: str
    next_step: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Print the checklist, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check that this tree can be released.")
    parser.add_argument("version", help="the version to release, for example 0.2.0")
    version = parser.parse_args(arguments).version
    root = Path.cwd()
    num_failed = 0

    def show(items: Iterator[Item]) -> None:
        nonlocal num_failed
        for item in items:
            print(f"{'FAIL' if item.next_step else 'pass'}  {item.what}", flush=True)
            if item.next_step:
                num_failed += 1
                print(f"      next: {item.next_step}")

    show(check_tree(root, version))
    if num_failed:
        print("not built: the wheel is checked when all of the above pass")
    else:
        show(build_and_check(root, version))
    print(f"{num_failed} failed" if num_failed else f"{version} can be released: see RELEASING.md")
    return 1 if num_failed else 0


def check_tree(root: Path, version: str) -> Iterator[Item]:
    """Yield the items that need no build."""
    yield Item(
        f"{version} is a version",
        "" if re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version) else "write it as 0.2.0",
    )
    code = (root / "penstock" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.*)"$', code, re.MULTILINE)
    ours = found[1] if found else "missing"
    yield Item(
        f"penstock.__version__ is {version}",
        "" if ours == version else f"it is {ours}: change penstock/__init__.py",
    )
    about = json.loads((root / "clients/javascript/package.json").read_text(encoding="utf-8"))
    yield Item(
        f"the JavaScript client is {version}",
        ""
        if about["version"] == version
        else f"it is {about['version']}: change clients/javascript/package.json",
    )
    yield from _check_changelog(root, version)
    head, tagged = _git(root, "rev-parse", "HEAD"), _git(root, "rev-parse", f"v{version}^{{}}")
    yield Item(
        f"the tag v{version} is this commit",
        ""
        if head and head == tagged
        else f"git tag -d v{version}, then tag this commit, if the tag is not public yet"
        if tagged
        else f"git tag -a v{version} -m 'Penstock {version}', as the last step",
    )
    changed = _git(root, "status", "--porcelain")
    yield Item(
        "the work tree is clean",
        f"commit or remove: {', '.join(changed.split(chr(10)))}" if changed else "",
    )
    policy = (root / "SECURITY.md").read_text(encoding="utf-8")
    has_contact = CONTACT_NOT_SET not in policy and re.search(r"[\w.+-]+@[\w-]+\.[\w.]+", policy)
    yield Item(
        "SECURITY.md has an address for reports",
        "" if has_contact else f"put a mailbox that people read in place of {CONTACT_NOT_SET}",
    )
    unset = _git(root, "grep", "-lF", REPOSITORY_NOT_SET, "--", ":!tools", ":!tests")
    yield Item(
        "the repository's address is set",
        f"replace {REPOSITORY_NOT_SET} in {', '.join(unset.split())}" if unset else "",
    )


def _check_changelog(root: Path, version: str) -> Iterator[Item]:
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    heading = re.compile(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d")
    about = [body for title, body in sections.items() if heading.fullmatch(title)]
    yield Item(
        f"CHANGELOG.md says what changed in {version}",
        ""
        if about and about[0].strip()
        else f"rename its section Unreleased to `## {version} - YYYY-MM-DD`",
    )
    yield Item(
        "CHANGELOG.md has nothing that is unreleased",
        f"move it into the section of {version}" if sections.get("Unreleased", "").strip() else "",
    )


def build_and_check(root: Path, version: str) -> Iterator[Item]:
    """Build the distributions in a temporary directory, and yield what is to be said of them."""
    yield from _build_and_check_wheel(root, NAME, version, IN_THE_WHEEL)
    client = root / "clients" / "python"
    yield from _build_and_check_wheel(client, CLIENT_NAME, version, IN_THE_CLIENT_S_WHEEL)
    yield from check_npm_package(root / "clients" / "javascript")


def _build_and_check_wheel(
    project: Path, name: str, version: str, needed: Sequence[str]
) -> Iterator[Item]:
    with tempfile.TemporaryDirectory() as out:
        built = _python(project, "build", "--outdir", out, str(project))
        yield Item(f"python -m build makes a wheel of {name}", built)
        if built:
            return
        (wheel,) = Path(out).glob("*.whl")
        yield from check_wheel(wheel, version, name, needed)
        paths = [str(path) for path in Path(out).iterdir()]
        yield Item("twine check --strict", _python(project, "twine", "check", "--strict", *paths))


def check_npm_package(package: Path) -> Iterator[Item]:
    """Yield what is to be said of the files that npm would publish."""
    npm = shutil.which("npm")
    if npm is None:
        yield Item("npm packs the JavaScript client", "install npm")
        return
    command = [npm, "pack", "--dry-run", "--json"]
    ran = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    yield Item("npm packs the JavaScript client", ran.stderr if ran.returncode else "")
    if ran.returncode:
        return
    files = {file["path"] for file in json.loads(ran.stdout)[0]["files"]}
    for name in IN_THE_NPM_PACKAGE:
        step = f"add {name} to files in {package.name}/package.json"
        yield Item(f"the npm package has {name}", "" if name in files else step)


def check_wheel(
    wheel: Path, version: str, name: str = NAME, needed: Sequence[str] = IN_THE_WHEEL
) -> Iterator[Item]:
    """Yield what is to be said of a wheel's files and metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [file for file in names if file.endswith(".dist-info/METADATA")]
        fields = message_from_bytes(archive.read(metadata))
    for file in needed:
        step = f"add {file} to package-data in pyproject.toml"
        yield Item(f"the wheel has {file}", "" if file in names else step)
    others = [file for file in names if file.split("/")[0] in NOT_IN_THE_WHEEL]
    yield Item(
        "the wheel has only the package",
        f"remove {others[0]}: see packages.find in pyproject.toml" if others else "",
    )
    has_licence = any(file.endswith(".dist-info/licenses/LICENSE") for file in names)
    yield Item(
        "the wheel has the licence",
        "" if has_licence and fields["License-Expression"] else "see license in pyproject.toml",
    )
    for field, expected in (("Name", name), ("Version", version)):
        step = f"the wheel says {fields[field]}: see pyproject.toml"
        yield Item(f"{field} is {expected}", "" if fields[field] == expected else step)


def _git(root: Path, *arguments: str) -> str:
    """Return what git prints, or nothing if it fails."""
    ran = subprocess.run(
        ["git", "-C", str(root), *arguments],  # noqa: S607 - the git of this machine
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _python(root: Path, module: str, *arguments: str) -> str:
    """Run a module, and return what it says if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    said = (ran.stdout + ran.stderr).strip()
    return (said or f"exit code {ran.returncode}") if ran.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
