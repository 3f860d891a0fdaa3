"""What mkdocs asks when it builds the site: generated pages, the navigation, code out of templates.

A page `docs/<topic>.md` that nobody lists here appears below "Topics", in alphabetical order.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

# What is read in here must not depend on who builds: no plugins of the surroundings, no network.
os.environ["HF_HUB_OFFLINE"] = "1"

from reference import PAGES, template_file

#: Title (or None: that of the page) and page, in the order of reading.
GUIDE: Final[list[Any]] = [
    {"Start here": ["index.md", "tutorial.md"]},
    {
        "Add a model": [
            "authoring/index.md",
            "authoring/gaussian.md",
            "authoring/tokens.md",
            "authoring/flow.md",
            "authoring/language.md",
            "authoring/actions.md",
            "authoring/wrap-policies.md",
            "authoring/migrating.md",
            "conformance.md",
        ]
    },
]
REFERENCE: Final = [*PAGES, "decisions.md"]
_TEMPLATE = re.compile(r"^<!-- template (\w+) (\S+) -->$", re.MULTILINE)


def topics(docs: Path) -> list[str]:
    """Pages in the folder itself that neither the guide nor the reference lists."""
    listed = {page for section in GUIDE for pages in section.values() for page in pages} | {*REFERENCE}
    return sorted(path.name for path in docs.glob("*.md") if path.name not in listed)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    docs = Path(config.docs_dir)
    guide = [
        {title: [page for page in pages if (docs / page).is_file()]}
        for section in GUIDE
        for title, pages in section.items()
    ]
    found = topics(docs)
    config.nav = [*guide, *([{"Topics": found}] if found else []), {"Reference": [*REFERENCE]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`<!-- template FAMILY PATH -->` becomes that file of a plugin made by `rlinf plugins new my_model`."""
    return _TEMPLATE.sub(lambda found: template_file(found[1], found[2]), markdown)
