"""What the build is told agrees with what lies in the tree.

setuptools rebuilds an extension only when a file in its ``depends`` changed; a header that is
missing there would leave modules with different ideas of one layout.
"""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "mmapds" / "_native"
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTENSIONS = {e["sources"][0]: e for e in CONFIG["tool"]["setuptools"]["ext-modules"]}
HEADERS = {f"mmapds/_native/{path.name}" for path in NATIVE.glob("*.h")}


def test_every_module_is_built_and_has_a_stub():
    modules = {path.stem for path in NATIVE.glob("*.pyx")}
    assert {f"mmapds/_native/{stem}.pyx" for stem in modules} == set(EXTENSIONS)
    assert modules == {path.stem for path in NATIVE.glob("*.pyi")}


@pytest.mark.parametrize("source", EXTENSIONS)
def test_every_dependency_is_known(source):
    extension = EXTENSIONS[source]
    depends = set(extension["depends"])
    assert depends >= HEADERS
    assert {path for path in depends if not (ROOT / path).is_file()} == set()
    pending, pxds = [source], set()
    while pending:
        text = (ROOT / pending.pop()).read_text("utf-8")
        for module in re.findall(r"^from mmapds\._native\.(\w+) cimport ", text, re.MULTILINE):
            pxd = f"mmapds/_native/{module}.pxd"
            if pxd not in pxds:
                pxds.add(pxd)
                pending.append(pxd)
    assert depends >= pxds
    assert extension["name"] == source.removesuffix(".pyx").replace("/", ".")


@pytest.mark.parametrize("path", sorted([*NATIVE.glob("*.pyx"), *NATIVE.glob("*.pxd")]), ids=lambda p: p.name)
def test_cimports_name_their_module(path):
    """Cython follows ``from a.b cimport c`` to b, not to a module c: that change goes unnoticed."""
    assert not re.search(r"^from mmapds(\._native)? cimport ", path.read_text("utf-8"), re.MULTILINE)


def test_one_set_of_compiler_arguments():
    arguments = [tuple(e["extra-compile-args"]) for e in EXTENSIONS.values()]
    assert len(set(arguments)) == 1
    assert "-O3" in arguments[0]
