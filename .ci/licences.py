"""What the package depends on, and under which licences: `python .ci/licences.py` prints the report of a release.

The licences are those that the installed packages declare. ``ACCEPTED`` and ``EXCEPTIONS`` say which are in order
and why; a test refuses any other. The weights of models have licences of their own, which ``lince-rag models``
lists.
"""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE: Final = "lince-rag"

# Extras for those who work on the package; nobody needs them to use it.
WORK_EXTRAS: Final = frozenset({"all", "dev", "docs"})

NOTICE: Final = "permissive: asks for its notice only"
FILES: Final = "asks for the source of its own files only, if they are changed"
ACCEPTED: Final = {
    **dict.fromkeys(
        (
            "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC",
            "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib",
        ),
        NOTICE,
    ),
    "LLVM-exception": "takes a condition of Apache-2.0 away",
    "MPL-2.0": FILES,
}  # fmt: skip

# Packages with another licence, and why they may be used.
EXCEPTIONS: Final = {
    "psycopg": "LGPL-3.0: in an extra only, used unchanged, as a library that anybody can replace",
    "psycopg-binary": "LGPL-3.0: in an extra only, used unchanged, as a library that anybody can replace",
    "psycopg-pool": "LGPL-3.0: in an extra only, used unchanged, as a library that anybody can replace",
}

# What packages say that is no SPDX expression.
SPELLINGS: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    # pdfium and what it contains (FreeType, libtiff, zlib …), all permissive: the folder of licences in its wheel.
    "BSD-3-Clause, Apache-2.0, dependency licenses": "BSD-3-Clause AND Apache-2.0",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

# Packages of extras that `make test` does not install, with the licences that their pages name.
NOT_INSTALLED: Final = {"bitsandbytes": "MIT"}


def user_extras() -> list[str]:
    """Return the extras that a user may install."""
    return sorted(set(distribution(PACKAGE).metadata.get_all("Provides-Extra") or ()) - WORK_EXTRAS)


def dependencies(extras: list[str]) -> dict[str, Distribution | None]:
    """Return everything that the package brings with it, by canonical name.

    Args:
        extras: The extras that are installed with it.

    Returns:
        The packages, theirs included; ``None`` where one is not installed here.
    """
    found: dict[str, Distribution | None] = {}
    seen = set()
    waiting = [(PACKAGE, frozenset(extras))]
    while waiting:
        name, chosen = waiting.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        for text in found[name].requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in chosen | {""}):
                waiting.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
    del found[PACKAGE]
    return found


def licence(name: str, package: Distribution | None) -> str:
    """Return the licence that a package declares, as an SPDX expression where it is one or can be made one."""
    if package is None:
        return NOT_INSTALLED.get(name, "unknown: not installed here")
    if expression := package.metadata.get("License-Expression"):
        return expression
    classifiers = package.metadata.get_all("Classifier") or ()
    told = [each.split(" :: ")[-1] for each in classifiers if each.startswith("License ::")]
    told = told or [(package.metadata.get("License") or "unknown").splitlines()[0]]
    return " AND ".join(SPELLINGS.get(each, each) for each in told)


def reason(name: str, expression: str) -> str:
    """Return why a package may be used; empty if it may not."""
    if name in EXCEPTIONS:
        return EXCEPTIONS[name]
    parts = [part for part in re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", expression) if part.strip()]
    reasons = dict.fromkeys(ACCEPTED.get(part.strip(), "") for part in parts)
    return "" if "" in reasons else "; ".join(reasons)


def report() -> str:
    """Return a Markdown table of all packages of the base install and of the extras."""
    base = dependencies([])
    lines = [
        "| package | version | licence | in order because it is … | base install |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, package in sorted(dependencies(user_extras()).items()):
        version = package.version if package else "–"
        told = licence(name, package)
        lines.append(f"| {name} | {version} | {told} | {reason(name, told)} | {'yes' if name in base else ''} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(report(), end="")
