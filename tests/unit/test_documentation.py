"""The pages say what the code does, and what they refer to exists."""

import re
from pathlib import Path

import pytest
import yaml

from tests.support.tables import DOCS, PAGES, ROOT, filled

README = ROOT / "README.md"
EVERY_PAGE = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
FOLDERS = "serve_app|tests|configs|benchmarks|docs"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", EVERY_PAGE, ids=name)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_tables_are_those_of_the_code(page: Path) -> None:
    """`python -m tests.support.tables` writes them."""
    assert page.read_text() == filled(page)


def test_the_readme_is_short() -> None:
    content = README.read_bytes()

    assert content.count(b"\n") <= 180
    assert len(content) <= 10_240


@every_page
def test_every_file_it_names_exists(page: Path) -> None:
    assert [path for path in sorted(files_named_in(page)) if not (ROOT / path).exists()] == []


def test_the_pages_name_files() -> None:
    """Otherwise the test above finds nothing to check."""
    assert len(set.union(*map(files_named_in, EVERY_PAGE))) > 20


@every_page
def test_every_make_target_it_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))

    assert named <= targets


@every_page
def test_every_link_inside_the_project_resolves(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_page = target.suffix == ".md"
        if not target.exists() or (anchor and is_page and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    assert sorted(pages_of(nav)) == [
        page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))
    ]


def files_named_in(page: Path) -> set[str]:
    return set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text()))


def links(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    found += re.findall(r'(?:href|src|srcset)="([^"]+)"', prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ()
    return [page for entry in entries for page in pages_of(entry)]
