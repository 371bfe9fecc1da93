"""The import direction of the package, read from the sources: nothing flows back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spectral

PACKAGE = Path(spectral.__file__).parent

# Room → the rooms of this package that it may import from; `errors` is open to all.
ALLOWED = {
    "errors": set(),
    "display": set(),
    "codebook": {"files"},
    "numerics": set(),
    "spectrum": {"arguments", "numerics"},
    "arguments": set(),
    "table_arguments": {"schema"},
    "attributes": set(),
    "network": {"arguments", "interrupts", "locks", "inputs", "surroundings"},
    "sampling": {"arguments", "numerics", "spectrum"},
    "metrics": {"numerics", "sampling", "spectrum"},
    "lowband": {"numerics", "sampling"},
    "instability": {"arguments", "inputs", "network", "numerics"},
    "synthetic": {"arguments"},
    "operators": set(),
    "axes": {"operators", "tensors"},
    "places": set(),
    "tracker": {"interrupts", "locks", "places"},
    "dataless": {"tensors"},
    "tensors": set(),
    "recorder": {"dataless", "operators", "places", "tracker"},
    "inputs": {"arguments"},
    "validation": {"arguments"},
    "interrupts": set(),
    "locks": set(),
    "copying": {"locks"},
    "reach": set(),
    "surroundings": set(),
    "identity": {"inputs", "models", "sameness", "standin", "surgery"},
    "standin": {"copying", "inputs", "interrupts", "locks", "network", "reach", "surroundings", "tensors"},
    "batchwise": {"inputs", "operators", "tensors"},
    "randomness": {"batchwise", "operators", "tensors"},
    "probe": {
        "batchwise",
        "classes",
        "dataless",
        "inputs",
        "network",
        "operators",
        "randomness",
        "standin",
        "stateful",
        "tensors",
    },
    "stateful": {"inputs", "reach", "standin", "surroundings"},
    "chain": {"operators"},
    "discovery": {
        "axes",
        "chain",
        "dataless",
        "inputs",
        "layers",
        "operators",
        "places",
        "recorder",
        "standin",
        "tensors",
        "tracker",
    },
    "sites": {"axes", "chain", "display", "operators", "discovery", "inputs", "network", "places", "standin"},
    "capture": {"operators", "sites"},
    "budget": {
        "arguments",
        "attributes",
        "causes",
        "inputs",
        "instability",
        "intake",
        "measurement",
        "network",
        "numerics",
        "ranks",
        "schema",
        "sharing",
        "sites",
        "stability",
        "stats",
        "table_arguments",
        "display",
        "shown",
    },
    "imaging": {
        "arguments",
        "causes",
        "inputs",
        "intake",
        "measurement",
        "network",
        "numerics",
        "ranks",
        "sharing",
        "tracker",
    },
    "causes": {
        "arguments",
        "axes",
        "discovery",
        "inputs",
        "layers",
        "network",
        "numerics",
        "operators",
        "places",
        "recorder",
        "sites",
        "standin",
        "tensors",
        "tracker",
    },
    "matching": {"places", "sites", "tracker"},
    "graph": {"recorder", "tracker"},
    "agreement": {"operators", "sites", "tracker"},
    "endings": {"operators", "places", "sites", "tracker"},
    "hooks": {
        "agreement",
        "capture",
        "endings",
        "interrupts",
        "graph",
        "matching",
        "operators",
        "recorder",
        "sites",
        "tracker",
    },
    "bands": {"lowband", "metrics", "numerics", "sampling", "spectrum"},
    "monitor": {"capture", "graph", "hooks", "measurement", "numerics", "sites"},
    "channels": {"metrics", "numerics", "sampling", "spectrum"},
    "integrations": {"capture", "layers", "monitor", "sites"},
    "surgery": {
        "causes",
        "copying",
        "display",
        "inputs",
        "latency",
        "layers",
        "numerics",
        "operators",
        "places",
        "recorder",
        "sites",
        "standin",
        "surroundings",
        "tracker",
    },
    "training_state": {"files", "sameness"},
    "views": {"inputs", "network"},
    "heldout": {"intake", "network"},
    "distillation": {
        "arguments",
        "copying",
        "ranks",
        "heldout",
        "identity",
        "inputs",
        "intake",
        "models",
        "network",
        "surgery",
        "surroundings",
        "training_state",
        "views",
    },
    "averaging": {"copying", "models"},
    "least_squares": set(),
    "recalibration": {"arguments", "copying", "heldout", "inputs", "intake", "network", "surgery"},
    "reconstruction": {
        "data",
        "least_squares",
        "arguments",
        "copying",
        "heldout",
        "inputs",
        "intake",
        "layers",
        "network",
        "recalibration",
        "surgery",
        "views",
    },
    "layers": {"arguments", "numerics", "validation"},
    "factories": set(),
    "models": {
        "arguments",
        "classes",
        "dataless",
        "factories",
        "files",
        "layers",
        "network",
        "surgery",
    },  # a checkpoint may be of a converted network
    "data": {"arguments", "classes", "factories", "files", "network", "numerics", "synthetic"},
    "intake": {"classes", "data", "interrupts", "inputs", "models", "network", "numerics", "probe"},
    "latency": {"arguments", "network", "ranks"},
    "classification": {"arguments", "classes", "models", "network"},
    "perturb": {
        "arguments",
        "classes",
        "columns",
        "data",
        "intake",
        "measurement",
        "metrics",
        "models",
        "network",
        "numerics",
        "ranks",
        "sharing",
        "spectrum",
        "validation",
    },
    "training": {
        "arguments",
        "classes",
        "identity",
        "models",
        "layers",
        "network",
        "numerics",
        "perturb",
        "ranks",
        "surroundings",
        "training_state",
    },
    "stats": {"arguments", "schema", "validation"},
    "columns": {"files", "schema", "stats"},
    "classes": set(),
    "pairing": {"sites"},
    "schema": set(),
    "files": set(),
    "json_files": {"files"},
    "writers": {"files"},
    "ranks": {"writers"},
    "sharing": {"data", "identity", "inputs", "network", "ranks", "sameness"},
    "launch": {"ranks"},
    "sweeping": {
        "arguments",
        "capture",
        "data",
        "files",
        "json_files",
        "lineage",
        "measurement",
        "models",
        "ranks",
        "run_folder",
        "sameness",
        "schema",
        "store",
        "summary",
        "table",
        "writers",
    },
    "table": {"arguments", "files", "json_files", "sameness", "schema", "table_arguments"},
    "shown": {"display"},
    "lazy": {"table", "shown"},
    "wide": {"schema", "table"},
    "summary": {"lazy", "schema", "stats", "table", "wide", "display"},
    "shards": {"files", "schema", "table"},
    "sameness": set(),
    "run_folder": {
        "arguments",
        "attributes",
        "json_files",
        "lazy",
        "schema",
        "shards",
        "summary",
        "table",
    },
    "store": {"files", "json_files", "run_folder", "sameness", "schema", "shards", "table"},
    "lineage": {"json_files", "run_folder", "schema", "table"},
    "stability": {
        "arguments",
        "attributes",
        "capture",
        "causes",
        "data",
        "classes",
        "hooks",
        "inputs",
        "instability",
        "intake",
        "measurement",
        "network",
        "numerics",
        "operators",
        "ranks",
        "schema",
        "sharing",
        "sites",
        "stats",
        "surgery",
        "table",
        "table_arguments",
    },
    "measurement": {
        "arguments",
        "attributes",
        "classes",
        "data",
        "inputs",
        "intake",
        "bands",
        "capture",
        "files",
        "channels",
        "numerics",
        "operators",
        "hooks",
        "instability",
        "interrupts",
        "identity",
        "lazy",
        "metrics",
        "network",
        "ranks",
        "run_folder",
        "sampling",
        "sharing",
        "sites",
        "spectrum",
        "standin",
        "store",
        "table",
        "summary",
    },
    "analysis": {
        "arguments",
        "budget",
        "capture",
        "causes",
        "channels",
        "classes",
        "columns",
        "data",
        "display",
        "files",
        "hooks",
        "identity",
        "inputs",
        "intake",
        "json_files",
        "latency",
        "measurement",
        "metrics",
        "models",
        "network",
        "operators",
        "pairing",
        "perturb",
        "ranks",
        "run_folder",
        "schema",
        "sharing",
        "sites",
        "spectrum",
        "stability",
        "stats",
        "summary",
        "surgery",
        "synthetic",
        "table",
        "table_arguments",
        "validation",
    },
    "figures": {"arguments", "files", "lineage", "schema", "stats", "table", "table_arguments", "validation"},
    "page": {
        "analysis",
        "arguments",
        "columns",
        "figures",
        "files",
        "lineage",
        "operators",
        "run_folder",
        "schema",
        "table",
    },
    "terminal": set(),
    "console": None,
    "study": None,  # may use every room but those above it
    "cli": None,
    "__main__": None,
    "__init__": {"validation"},
}
THIRD_PARTY_OWNERS = {
    "timm": {"classes", "models"},
    "antialiased_cnns": {"models"},
    "matplotlib": {"figures"},
    "jinja2": {"page"},
    "click": {"cli", "console", "study"},
    "sklearn": {"stats"},
    "pywt": {"layers"},
    "huggingface_hub": {"models"},
    "foolbox": {"perturb"},
    "lightning": {"integrations"},
    "pyautoattack": {"perturb"},
    "imagecorruptions": {"perturb"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_rule():
    assert {room_of(path) for path in SOURCES} <= set(ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("spectral.")}
    used -= {"errors", room}
    allowed = ALLOWED[room]
    above = {"console": {"study", "cli"}, "study": {"cli"}}
    assert not used & above.get(room, set()), f"{path.name} imports a room above it"
    assert allowed is None or used <= allowed, f"{path.name} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_third_party_packages_have_owners(path):
    packages = {name.split(".")[0] for name in imports_of(path)}
    for package, owners in THIRD_PARTY_OWNERS.items():
        assert package not in packages or room_of(path) in owners


def loaded_after(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(' '.join(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "pandas", "matplotlib", "timm", "torchvision", "sklearn", "pyarrow", "scipy"}
    assert not heavy & loaded_after("import spectral")


@pytest.mark.parametrize("module", ["stats", "figures"])
def test_tables_become_figures_without_torch(module):
    assert "torch" not in loaded_after(f"import spectral.{module}")


def test_metrics_load_without_tables_or_figures():
    loaded = loaded_after("import spectral; spectral.compute_avr")
    assert "torch" in loaded
    assert not {"pandas", "matplotlib", "timm", "torchvision"} & loaded


def test_every_public_name_resolves():
    for name in spectral.__all__:
        assert getattr(spectral, name) is not None
    # a module of the same name would shadow these functions
    assert callable(spectral.measure)
    assert callable(spectral.train)
