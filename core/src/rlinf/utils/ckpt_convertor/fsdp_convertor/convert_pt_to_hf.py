"""`rlinf convert` by its published name, `python -m` this module.

Like a worker it loads RLINF_EXT_MODULE before it looks models up.
"""

from __future__ import annotations

import sys

from rlinf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
