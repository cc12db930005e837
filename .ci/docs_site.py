"""The documentation site: guides and lab pages by MkDocs, the reference of every module by pdoc.

mkdocs.yml names this file as its hook; `make docs` builds. Pages that mkdocs.yml does not name are
added to its navigation. The site stands alone: some files outside docs/ become pages of it, and a
link to any other file of the checkout becomes its text.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "project.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()#\s]+)(#[^()\s]*)?\)")

WORKER = """
// Browsers start no worker from a file. The search's runs in a frame, with the events of a worker.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe"), waiting = [];
    const base = new URL(url, document.baseURI);
    frame.hidden = true;
    document.body.append(frame);
    const inside = frame.contentWindow;
    const load = path => new Promise((done, failed) => {
      const script = inside.document.createElement("script");
      Object.assign(script, { src: new URL(path, base).href, onload: done, onerror: failed });
      inside.document.head.append(script);
    });
    inside.importScripts = (...paths) => Promise.all(paths.map(load));
    inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
    this.postMessage = data => waiting.push(data);
    const send = data => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    load(base.href).then(() => { this.postMessage = send; waiting.forEach(send); });
  }
  terminate() {}
};
"""


def modules() -> dict[str, str]:
    """Every module that a user can import, with the first sentence of its docstring."""
    import spikeformer_lt

    found = pkgutil.walk_packages(spikeformer_lt.__path__, "spikeformer_lt.")
    names = ["spikeformer_lt", *(one.name for one in found if not one.name.endswith("__main__"))]
    for folder in ("models", "datasets"):  # folders without __init__, which the walk passes over
        own = pkgutil.iter_modules([str(ROOT / folder)])
        names += [f"spikeformer_lt.{folder}.{one.name}" for one in own]
    return {name: _first_sentence(name) for name in sorted(names)}


def _first_sentence(module: str) -> str:
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    told = ast.get_docstring(ast.parse(file.read_text())) if file.exists() else ""
    return re.split(r"\n\n|(?<=\.)\s", told or "")[0].replace("\n", " ")


def reference() -> str:
    """The page that leads to every page of the reference."""
    lines = ["# Reference of the modules", "", "Made from the docstrings. A package's page has its",
             "public names; the pages below it have everything.", ""]  # fmt: skip
    known, folders = modules(), set()
    for name, told in known.items():
        folder = name.rpartition(".")[0]
        if folder and folder not in known and folder not in folders:  # models, datasets
            folders.add(folder)
            lines.append(f"- `{folder}`")
        indent = "    " * max(0, name.count(".") - 1)
        href = f"../api/{name.replace('.', '/')}.html"
        lines.append(f'{indent}- <a href="{href}"><code>{name}</code></a> {told}')
    return "\n".join(lines) + "\n"


def on_config(config: Any) -> Any:
    """Add the pages that the navigation does not name: results to the lab, the rest at the end."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    docs = Path(config.docs_dir)
    found = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    for page in [*found, *OUTSIDE.values()]:
        if page not in named:
            title = "Lab" if page.startswith(("results/", "lab/")) else "More"
            section = next((one for one in config.nav if title in one), None)
            if section is None:
                config.nav.append(section := {title: []})
            section[title].append(page)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not come from docs/."""
    pages = {page: (ROOT / source).read_text() for source, page in OUTSIDE.items()}
    for page, text in {**pages, "reference/api.md": reference()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the checkout into links between pages of the site."""
    place = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == place), f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(ROOT / Path(source).parent / target)
        if not os.path.exists(path):
            return link[0]
        name = os.path.relpath(path, ROOT)
        inside = name.removeprefix("docs/") if name.startswith("docs/") else OUTSIDE.get(name)
        if inside is None or os.path.isdir(path):
            return text
        return f"[{text}]({os.path.relpath(inside, Path(place).parent)}{anchor})"

    return LINK.sub(moved, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Put our stand-in for workers where the theme would load one from the network."""
    return re.sub(r'<script src="https://[^"]*"></script>', f"<script>{WORKER}</script>", output)


def on_post_build(config: Any) -> None:
    """Write the reference of every module."""
    import pdoc

    pdoc.render.configure(docformat="google", footer_text="spikeformer_lt")
    folder, names = Path(config.site_dir) / "api", list(modules())
    for module in map(importlib.import_module, names):  # what is lazy is looked up before pdoc asks
        for name in getattr(module, "__all__", ()):
            getattr(module, name)
    pdoc.pdoc(*names, output_directory=folder)
    (folder / "index.html").unlink()  # it leads to one module; reference/api.html to all
    texts = {page.resolve(): page.read_text() for page in folder.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    for page, text in texts.items():  # pdoc links to private classes, which have no entry

        def known(link: re.Match[str], page: Path = page) -> str:
            target = (page.parent / link[1]).resolve() if link[1] else page
            return link[0] if link[2] in anchors.get(target, {link[2]}) else link[3]

        page.write_text(re.sub(r'<a href="([^"#:]*)#([^"]+)"[^>]*>(.*?)</a>', known, text))
