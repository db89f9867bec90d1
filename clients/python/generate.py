"""Generates the stubs of the API from the protos of this repository, into watchpost/v1."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parent.parent / "proto"


def generate() -> None:
    """Writes the modules; what protoc says of an error is on stderr."""
    shutil.rmtree(HERE / "watchpost", ignore_errors=True)
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={HERE}",
        f"--pyi_out={HERE}",
        f"--grpc_python_out={HERE}",
        *(str(path) for path in sorted(PROTOS.rglob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("the stubs could not be generated")


if __name__ == "__main__":
    generate()
