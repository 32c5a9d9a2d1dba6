#!/usr/bin/env python3
"""Copies the sources of the Python standard library into one folder.

  collect_stdlib.py OUTPUT

Tests and installed packages are left out, so that two machines with the same
Python get the same text.
"""

import pathlib
import shutil
import sys
import sysconfig

LEFT_OUT = {"__pycache__", "dist-packages", "idle_test", "site-packages",
            "test", "tests"}


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    output = pathlib.Path(sys.argv[1])
    stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
    num_files = num_bytes = 0
    for source in sorted(stdlib.rglob("*.py")):
        relative = source.relative_to(stdlib)
        if LEFT_OUT.intersection(relative.parts):
            continue
        target = output / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        num_files += 1
        num_bytes += target.stat().st_size
    if num_files == 0:
        print(f"collect_stdlib: expected Python sources in {stdlib}, found "
              "none", file=sys.stderr)
        return 1
    print(f"{num_files} files, {num_bytes / 1e6:.1f} MB of Python in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
