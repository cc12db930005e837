"""The description in the package's metadata: README without what only a checkout has.

Everything else stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

NOTE = "Paths in this text, such as `docs/export.md`, are those of the source archive.\n\n"
END = """
## Install and read

Linux, Python 3.11 or newer; `pip install` takes a torch without CUDA with
`--extra-index-url https://download.pytorch.org/whl/cpu`. `spikeformer-lt` lists the commands,
`spikeformer-lt COMMAND --help` their options. Guides, notebooks, equations and measurements are in
`docs/`; `docs/README.md` lists them.

"""


def description(readme: str) -> str:
    """README for a page that has neither files nor pictures of the checkout.

    A picture goes with the paragraph under it; a link to a file becomes the file's path. The last
    paragraph, on licences, stays.
    """
    text, _, rest = readme.partition("\n## Install, read, help\n")
    text = re.sub(r"^From a checkout, .*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n(.+\n)+\n", "", text)
    text = re.sub(r"^pip install \. .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)([^)#]*)[^)]*\)", r"\1 (`\2`)", text)
    text = re.sub(r"(?<=\n\n)(?=```)", NOTE, text, count=1)
    return text + END + rest.rpartition("\n\n")[2]


if __name__ == "__main__":  # as the build runs it
    setup(
        long_description=description(Path("README.md").read_text("utf-8")),
        long_description_content_type="text/markdown",
    )
