"""The files in .github are of GitHub's form. The schemas come with check-jsonschema."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CONFIG = GITHUB / "ISSUE_TEMPLATE" / "config.yml"
FORMS = sorted(set(CONFIG.parent.glob("*.yml")) - {CONFIG})


def validate(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [CONFIG]),
    ],
    ids=["workflows", "issue forms", "issue config"],
)
def test_the_files_are_of_github_s_form(schema: str, files: list[Path]) -> None:
    assert files
    ran = validate(schema, *files)
    assert ran.returncode == 0, ran.stdout


def test_a_workflow_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    broken.write_text(text.replace("runs-on:", "run-on:"), encoding="utf-8")
    assert validate("vendor.github-workflows", broken).returncode != 0


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_a_developer_runs(workflow: Path) -> None:
    """Every target of make and every script that it names exists."""
    text = workflow.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"run: make ([a-z-]+)", text)
    assert all(re.search(f"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert (ROOT / ".ci" / "run").exists()
    assert targets or ".ci/run" in text
