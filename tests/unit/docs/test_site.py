"""The site is built strictly: what a reader would not find fails the build."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("link", ["#no-such-section", "other.md", "other.md#no-such-section"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str) -> None:
    """`make docs` fails for a page or section that is not there, and names it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Page\n\n[text]({link})\n")
    if "#" in link:
        (tmp_path / "docs/other.md").write_text("# Other\n")
    validation = (ROOT / "mkdocs.yml").read_text().partition("validation:")[2].partition("nav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\nvalidation:{validation}")
    asked = ["make", "--dry-run", "--no-print-directory", "docs", f"BIN={Path(sys.executable).parent}"]
    printed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in printed.splitlines() if "mkdocs build" in line)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stderr
    assert link in done.stdout + done.stderr
