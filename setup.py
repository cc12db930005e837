"""The description in the package's metadata: README without what only a checkout has.

Everything else stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

END = """
Guides, notebooks, equations and measurements are in `docs/` of the source folder. After an
installation `spikeformer-lt` lists the commands, `spikeformer-lt COMMAND --help` their options.
"""


def description(readme: str) -> str:
    """README down to its links to guides, without pictures and links to files of the folder."""
    text = readme.partition("\n## Install, read, help\n")[0]
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text) + END


if __name__ == "__main__":  # as the build runs it
    setup(
        long_description=description(Path("README.md").read_text("utf-8")),
        long_description_content_type="text/markdown",
    )
