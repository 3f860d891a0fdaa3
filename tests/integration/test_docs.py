"""The documentation: the site builds without a warning, and every code block of its pages runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import SHOWN, blocks, script
from plugin_kit import Environment
from rlinf.cli.scaffold import FAMILIES, NewPlugin, render

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    DOCS / "tutorial.md",
    *sorted((DOCS / "authoring").glob("*.md")),
    DOCS / "conformance.md",
    DOCS / "datasets.md",
    DOCS / "rewards.md",
    DOCS / "language.md",
]
#: What the pages train, made small: the sizes stand last, so they win.
SMALL = (
    "runner.max_steps=1 env.num_envs=8 env.steps_per_rollout=8 env.eval.num_episodes=4 env.eval.blind=false "
    "actor.micro_batch_size=4 actor.global_batch_size=16 sft.max_steps=2 sft.batch_size=16 "
    "sft.expert_episodes=2 actor.optim.lr_warmup_steps=0"
)
_RLINF = """#!/bin/sh
case "$1" in
  train) exec python -m rlinf.cli.main "$@" {small} ;;
  *) exec python -m rlinf.cli.main "$@" ;;
esac
"""
_TEMPLATE = re.compile(r"^<!-- template (\w+) (\S+) -->$", re.MULTILINE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment with the commands that the pages type."""
    environment = Environment(tmp_path_factory.mktemp("docs") / "venv")
    commands = {
        "rlinf": _RLINF.format(small=SMALL),
        "pip": '#!/bin/sh\nexec python -m pip "$@"\n',
        "pytest": '#!/bin/sh\nexec python -m pytest "$@"\n',
    }
    for name, text in commands.items():
        path = environment.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return environment


def with_templates(page: str) -> str:
    """Templates shown in a page are tested as the plugins that they make; here they only must exist."""

    def check(found: re.Match[str]) -> str:
        files = render(NewPlugin(name="my_model", family=found[1]))
        assert sum(name.rpartition("/")[2] == found[2] for name in files) == 1, found[0]
        return ""

    return _TEMPLATE.sub(check, page)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_block_runs(page: Path, environment: Environment, tmp_path: Path) -> None:
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RLINF_")},
        "PATH": f"{environment.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        # pip finds what it needs in the environment under test, offline.
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
    }
    done = subprocess.run(
        ["bash", "-c", script(page, with_templates)],
        env=variables, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_family_has_a_page() -> None:
    assert {path.stem for path in (DOCS / "authoring").glob("*.md")} >= set(FAMILIES)


def test_blocks_that_do_not_run_are_output_or_installation() -> None:
    found = [block for page in PAGES for block in blocks(with_templates(page.read_text()))]
    assert sum(block.language not in SHOWN for block in found) > 30
    for block in found:
        if block.language == "console":
            assert "pip install" in block.text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8")):
            assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag) or 'rel="canonical"' in tag, tag


def test_the_site_has_every_page_and_reference(site: Path) -> None:
    from rlinf.cli.main import COMMANDS
    from rlinf.config.schema import Config

    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert f'href="{page.stem}.html"' in start, f"{page.name} is not in the navigation"
    keys = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    for block, field in Config.model_fields.items():
        schema = field.annotation
        for name in getattr(schema, "model_fields", {}):
            assert f"{block}.{name}" in keys
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f"rlinf {name}" in commands for name in COMMANDS)
    hooks = (site / "reference" / "hooks.html").read_text(encoding="utf-8")
    assert all(name in hooks for name in ("rlinf_model_spec", "rlinf_action_processors", "lora_targets"))
