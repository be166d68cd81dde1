"""A hook of MkDocs: README.md is the site's first page, and links that leave docs/ lead somewhere.

In: the pages as they stand in the repository, where every link works on GitHub and in an editor.
Out: the same links for the site. A link to a file outside docs/ becomes a link to the repository
(`extra.repository` in mkdocs.yml). A link to a file or a heading that does not exist stops the
build. MkDocs itself checks the links between the pages.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify  # type: ignore[import-untyped] # it has no types

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add README.md as the page index.md."""
    files.append(File.generated(config, "index.md", content=README.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page's text with its links rewritten for the site."""
    uri = page.file.src_uri
    source = README if uri == "index.md" else DOCS / uri
    repository = str(config.extra["repository"])
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):  # code is left alone
        parts += [for_site(markdown[end : fence.start()], source, repository), fence[0]]
        end = fence.end()
    return "".join([*parts, for_site(markdown[end:], source, repository)])


def for_site(text: str, source: Path, repository: str) -> str:
    """Return Markdown of the file `source` with its links rewritten for the site.

    Raises PluginError if a link leads to a file or a heading that does not exist.
    """

    def rewrite(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link["path"]))
        anchor = link["anchor"] or ""
        place = source.relative_to(ROOT)
        if not target.is_relative_to(ROOT) or not target.exists():
            raise PluginError(f"{place}: there is no {link['path']}")
        if target.is_relative_to(DOCS):
            base = DOCS if source == README else source.parent
            return os.path.relpath(target, base) + anchor
        if anchor and target.suffix == ".md" and anchor[1:] not in anchors_of(target):
            raise PluginError(f"{place}: {link['path']} has no heading {anchor}")
        kind = "tree" if target.is_dir() else "blob"
        return f"{repository}/{kind}/main/{target.relative_to(ROOT)}{anchor}"

    return LINK.sub(rewrite, text)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    slug = slugify(case="lower")
    return {slug(heading, "-") for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)}
