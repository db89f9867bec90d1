"""Builds the package of workers with the stubs of the API, generated from the protos of this repository."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate import generate


class BuildWithStubs(build_py):
    """Adds the stubs to what is built."""

    def run(self) -> None:
        """Builds the package, then the stubs beside it."""
        super().run()
        generate(Path(self.build_lib))


setup(cmdclass={"build_py": BuildWithStubs})
