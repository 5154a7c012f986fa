"""What the documents name is there: files, headings, commands, configs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "cluster/*.md", "configs/*.md", "benchmarks/results/*.md")
    for page in ROOT.glob(pattern)
)
pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_command_and_config_is_there(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m (grm_ray(?:\.\w+)+)", text):
        assert importlib.util.find_spec(module), module
    for config in re.findall(r"\bconfigs/[\w/]+\.(?:yaml|py|md)\b", text):
        assert (ROOT / config).is_file(), config
    for target in re.findall(r"^make ([a-z-]+)", text, re.M):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), target


def test_every_module_of_the_map_is_there(page):
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8")):
        assert any((base / path).is_file() for base in (ROOT, ROOT / "grm_ray")), path
