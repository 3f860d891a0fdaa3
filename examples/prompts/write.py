"""Write the problems of digits_grpo as files, as a run on pictures of your own has them.

    python examples/digits/write.py FOLDER [ROWS]

FOLDER gets train.jsonl, held_out.jsonl and demonstrations.jsonl, whose rows name PNG files in FOLDER/images,
relative to the JSONL file; at most ROWS rows each. Always the same. See docs/language.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image
from rlinf.envs.prompts import digits


def write(folder: Path, rows: int | None = None) -> None:
    """The three files and their pictures."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in ("train", "held_out", "demonstrations"):
        lines = []
        for number, row in enumerate(getattr(digits, name)()[:rows]):
            file = images / f"{name}_{number:04d}.png"
            Image.fromarray(row["image"]).save(file)
            lines.append(json.dumps({**row, "image": str(file.relative_to(folder))}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/digits/write.py FOLDER [ROWS]")
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
