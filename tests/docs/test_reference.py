"""The pages in docs/reference match the code."""

import pytest

from tools import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_matches_the_code(name: str) -> None:
    page = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert page == reference.PAGES[name](), f"docs/reference/{name} is stale: {reference.COMMAND}"


def test_check_names_a_stale_page_and_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main(["--check"]) == 0
    monkeypatch.setitem(reference.PAGES, "settings.md", lambda: "Something else.\n")
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().out == (
        "docs/reference/settings.md does not match the code. Run: python -m tools.reference\n"
    )


def test_the_client_page_has_every_public_name() -> None:
    page = reference.client_page()
    assert "## `Client`" in page
    assert "### `Client.stream`" in page
    assert "## `RefusedError`" in page
