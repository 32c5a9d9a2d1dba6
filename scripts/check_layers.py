#!/usr/bin/env python3
"""Checks what the compiler does not: layers, sizes, names, characters.

  check_layers.py [ROOT]

An include may only point down the layers, never up or sideways. Prints one
line per violation, file:line first, and exits 1 if there is any.
"""

import pathlib
import re
import subprocess
import sys

# Folder of src/ -> layer. Folders of one layer do not include each other.
LAYERS = {
    "base": 0,
    "layout": 1, "kernels": 1, "config": 1,
    "comm": 2, "memory": 2,
    "param": 3, "parallel": 3,
    "fetch": 4, "grad": 4, "optim": 4,
    "checkpoint": 5,
    "engine": 6, "bench": 6,
    "train": 7,
}
# Public header -> folder of src/ that implements it. A header without
# implementation belongs to the lowest folder that may use it.
PUBLIC = {
    "activation_checkpoint.h": "base", "errors.h": "base",
    "call_text.h": "base", "cores.h": "base",
    "comparison.h": "base", "graph_replay.h": "base",
    "no_op.h": "base", "placement.h": "base", "seeds.h": "base",
    "torch_version.h": "base", "transposed_linear.h": "base",
    "memory_estimates.h": "layout", "partition.h": "layout",
    "tensor_lists.h": "layout",
    "config.h": "config", "strict_json.h": "config",
    "expert_ranks.h": "layout", "mics_ranks.h": "layout",
    "rank_lists.h": "layout", "quantization_groups.h": "layout",
    "quantization.h": "kernels", "quantized_weight.h": "kernels",
    "c10d_backend.h": "comm", "collectives.h": "comm", "dp_gather.h": "comm", "group.h": "comm",
    "group_provider.h": "comm", "mesh.h": "comm",
    "partitioned_tensor.h": "comm", "quantized_collectives.h": "comm",
    "world.h": "comm",
    "host_memory.h": "memory", "memory_usage.h": "memory",
    "model_parallel.h": "param", "tensor_structure.h": "param",
    "differentiable_collectives.h": "parallel", "moe.h": "parallel",
    "sequence_parallel.h": "parallel", "tensor_parallel.h": "parallel",
    "gather.h": "fetch",
    "backward_hooks.h": "grad",
    "clip.h": "optim", "dummy_optim.h": "optim", "norms.h": "optim",
    "optim.h": "optim",
    "overflow.h": "optim",
    "checkpoint.h": "checkpoint", "checkpoint_folder.h": "checkpoint",
    "engine.h": "engine", "init.h": "engine",
    "params.h": "engine", "report.h": "engine", "nfold.h": "engine",
}
MAX_LINES = 600
MAX_COLUMNS = 80
BANNED_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
CPP = {".h", ".cc"}
TEXT = CPP | {".py", ".sh", ".cmake", ".md", ".txt", ".json", ".yml"}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
OUR_ANGLE_INCLUDE = re.compile(r"^\s*#\s*include\s+<(nfold/[^>]+)>")


def folder_of(included: str) -> str | None:
    """The folder of src/ that an include path belongs to."""
    first, _, rest = included.partition("/")
    if first == "nfold":
        return PUBLIC.get(rest)
    return first


def check_include(path: pathlib.PurePath, included: str,
                  root: pathlib.Path) -> str | None:
    """What is wrong with the include, or None."""
    is_public = included.startswith("nfold/")
    if is_public and folder_of(included) is None:
        return f'"{included}" has no layer; add it to {__file__}'
    if path.parts[0] not in ("src", "include"):
        return None  # tests/ and bench/ may include anything
    base = root / ("include" if is_public else "src")
    if not (base / included).is_file():
        return (f'"{included}" is not a file below {base.name}/; write '
                "includes from src/ or include/")
    if path.parts[0] == "include":
        source = PUBLIC.get(path.name)
        if source is None:
            return f"{path.name} has no layer; add it to {__file__}"
        if not is_public:
            return f'a public header includes "{included}"'
    else:
        source = path.parts[1]
    target = folder_of(included)
    if source == target:
        return None
    if source == "testing":
        return None if target != "train" else "testing includes train"
    if target == "testing":
        if path.stem.endswith("_test"):
            return None
        return f'"{included}" is for tests only'
    for folder in (source, target):
        if folder not in LAYERS:
            return f"folder {folder} has no layer; add it to {__file__}"
    if source == "train":
        # What `nfold bench` measures no user calls, so it is not public.
        return None if is_public or target == "bench" else (
            f'train may include only nfold/... and bench/..., found '
            f'"{included}"')
    if LAYERS[target] < LAYERS[source]:
        return None
    way = "sideways" if LAYERS[target] == LAYERS[source] else "up"
    return (f'"{included}" ({target}, layer {LAYERS[target]}) points {way} '
            f"from {source} (layer {LAYERS[source]})")


def check_file(path: pathlib.PurePath, text: str, root: pathlib.Path):
    """Yields (line number, what is wrong)."""
    lines = text.splitlines()
    is_test = path.stem.endswith("_test")
    if set(re.split(r"[._-]", path.stem.lower())) & BANNED_NAMES:
        yield 1, f"a file named {path.name} collects what belongs elsewhere"
    if len(lines) > MAX_LINES and path.suffix in CPP | {".py", ".sh"}:
        yield MAX_LINES, f"{len(lines)} lines, at most {MAX_LINES}; split it"
    if path.suffix == ".h" and path.parts[0] in ("src", "include"):
        is_public = path.parts[0] == "include"
        name = "/".join(path.parts[1:]) if is_public else path.name
        if not lines or lines[0] != f"// File: {name}":
            yield 1, f'expected "// File: {name}" as first line'
    for number, line in enumerate(lines, 1):
        if not line.isascii() and not is_test and path.suffix != ".md":
            yield number, "a character outside of ASCII"
        if "\u2014" in line or "\u2013" in line:
            yield number, "a dash outside of ASCII"
        if path.suffix not in CPP:
            continue
        if len(line) > MAX_COLUMNS and "://" not in line:
            yield number, f"{len(line)} columns, at most {MAX_COLUMNS}"
        if found := INCLUDE.match(line):
            if problem := check_include(path, found[1], root):
                yield number, problem
        elif found := OUR_ANGLE_INCLUDE.match(line):
            if path.parts[0] in ("src", "include"):
                yield number, f'write #include "{found[1]}" inside nfold'


def source_files(root: pathlib.Path) -> list[pathlib.PurePath]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
         "--exclude-standard"],
        capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [pathlib.PurePath(name)
                for name in sorted(listed.stdout.split("\0")) if name]
    # An exported tree without .git.
    return [found.relative_to(root)
            for folder in ("src", "include", "tests", "bench", "scripts")
            for found in sorted((root / folder).rglob("*"))]


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else
                        pathlib.Path(__file__).resolve().parent.parent)
    num_files = num_problems = 0
    for path in source_files(root):
        full = root / path
        if path.suffix not in TEXT or not full.is_file():
            continue
        num_files += 1
        text = full.read_text(encoding="utf-8", errors="surrogateescape")
        for number, problem in check_file(path, text, root):
            num_problems += 1
            print(f"{path}:{number}: {problem}")
    if num_problems:
        print(f"{num_problems} problems in {num_files} files",
              file=sys.stderr)
        return 1
    print(f"{num_files} files, layers and sizes are fine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
