"""Generates the stubs of the API from the protos of this repository, into watchpost/v1."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parent.parent / "proto"


def generate(folder: Path = HERE) -> None:
    """Writes the modules into this folder; what protoc says of an error is on stderr."""
    shutil.rmtree(folder / "watchpost", ignore_errors=True)
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        f"--grpc_python_out={folder}",
        *(str(path) for path in sorted(PROTOS.rglob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("the stubs could not be generated")


if __name__ == "__main__":
    generate()
