"""Write the API reference from the docstrings: python .ci/api_docs.py FOLDER."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path

import pdoc

import spikeformer_lt


def modules() -> list[str]:
    """Every module that a user can import."""
    found = pkgutil.walk_packages(spikeformer_lt.__path__, "spikeformer_lt.")
    return ["spikeformer_lt", *(m.name for m in found if not m.name.endswith("__main__"))]


def main(folder: Path) -> None:
    """Write one page a module, an index and a search."""
    pdoc.render.configure(docformat="google", footer_text="spikeformer_lt")
    pdoc.pdoc(*modules(), output_directory=folder)
    pages = sorted(folder.rglob("*.html"))
    print(f"{len(pages)} pages: open {folder / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
