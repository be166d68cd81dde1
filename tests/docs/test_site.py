"""The documentation as a site: it builds strictly, and loads nothing from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from tests.docs.pages import ROOT
from tools.site_links import README, anchors_of, for_site

REPOSITORY = "https://example.org/penstock"
LOADED_FROM_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out


def test_the_site_has_every_page(site: Path) -> None:
    names = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert all((site / name.with_suffix("") / "index.html").exists() for name in names)
    assert "<h1" in (site / "index.html").read_text(encoding="utf-8")


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = LOADED_FROM_ELSEWHERE.search(page.read_text(encoding="utf-8"))
        assert found is None, page.relative_to(site)


def test_every_block_of_code_is_rendered_as_code(site: Path) -> None:
    """A fence in a list must be indented by four spaces to be code on the site as well."""
    for page in site.rglob("*.html"):
        assert "```" not in page.read_text(encoding="utf-8"), page.relative_to(site)


@pytest.mark.parametrize(
    ("source", "link", "on_the_site"),
    [
        ("docs/protocol.md", "security.md#tls", "security.md#tls"),
        ("docs/protocol.md", "../LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("docs/protocol.md", "../training/", f"{REPOSITORY}/tree/main/training"),
        ("docs/reference/x.md", "../protocol.md", "../protocol.md"),
        ("docs/reference/x.md", "../../LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("README.md", "docs/page.png", "page.png"),
        ("README.md", "CONTRIBUTING.md#tests", f"{REPOSITORY}/blob/main/CONTRIBUTING.md#tests"),
        ("README.md", "https://example.org/x.md", "https://example.org/x.md"),
        ("README.md", "#python", "#python"),
    ],
)
def test_a_link_leads_to_the_same_place_on_the_site(
    source: str, link: str, on_the_site: str
) -> None:
    assert for_site(f"[a]({link})", ROOT / source, REPOSITORY) == f"[a]({on_the_site})"


@pytest.mark.parametrize(
    "link", ["no-such-file.md", "../elsewhere/README.md", "CONTRIBUTING.md#no-such-heading"]
)
def test_a_link_that_leads_nowhere_stops_the_build(link: str) -> None:
    with pytest.raises(PluginError, match="README"):
        for_site(f"[a]({link})", README, REPOSITORY)


def test_headings_have_the_anchors_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `code` & more\n```bash\n# a comment\n```\n## What's it?\n", "utf-8")
    assert anchors_of(page) == {"one-code--more", "whats-it"}
