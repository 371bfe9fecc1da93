"""The import direction of the package, read from the sources: nothing flows back."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import spectral

PACKAGE = Path(spectral.__file__).parent

# Room → the rooms of this package that it may import from; `errors` is open to all.
ALLOWED = {
    "arguments": set(),
    "classes": set(),
    "errors": set(),
    "files": set(),
    "numerics": set(),
    "operators": set(),
    "codebook": {"files"},
    "layers": {"arguments", "numerics"},
    "processes": {"files"},
    "synthetic": {"arguments"},
    "table": {"arguments", "files"},
    "network": {"arguments", "processes"},
    "stats": {"arguments", "files", "table"},
    "terminal": {"files", "processes"},
    "data": {"arguments", "classes", "files", "network", "numerics", "synthetic"},
    "latency": {"arguments", "network", "processes"},
    "metrics": {"arguments", "network", "numerics"},
    "runs": {"arguments", "files", "stats", "table"},
    "tracing": {"classes", "network", "operators", "processes"},
    "axes": {"operators", "tracing"},
    "figures": {"arguments", "files", "runs", "stats", "table"},
    "discovery": {"axes", "layers", "network", "operators", "tracing"},
    "sites": {"axes", "discovery", "network", "operators", "table", "tracing"},
    "causes": {
        "arguments",
        "axes",
        "discovery",
        "layers",
        "network",
        "numerics",
        "operators",
        "sites",
        "tracing",
    },
    "hooks": {"operators", "processes", "sites", "tracing"},
    "pairing": {"sites"},
    "surgery": {
        "causes",
        "latency",
        "layers",
        "network",
        "numerics",
        "operators",
        "processes",
        "sites",
        "table",
        "tracing",
    },
    "models": {"arguments", "classes", "files", "layers", "network", "surgery", "tracing"},
    "classification": {"arguments", "classes", "models", "network"},
    "identity": {"files", "models", "network", "surgery", "tracing"},
    "intake": {"classes", "data", "models", "network", "numerics", "processes", "tracing"},
    "repair": {
        "arguments",
        "data",
        "files",
        "identity",
        "intake",
        "layers",
        "models",
        "network",
        "processes",
        "surgery",
        "tracing",
    },
    "sharing": {"data", "files", "identity", "network", "processes"},
    "measurement": {
        "arguments",
        "classes",
        "data",
        "files",
        "hooks",
        "identity",
        "intake",
        "metrics",
        "network",
        "numerics",
        "operators",
        "processes",
        "runs",
        "sharing",
        "sites",
        "table",
        "tracing",
    },
    "imaging": {
        "arguments",
        "causes",
        "intake",
        "measurement",
        "network",
        "numerics",
        "processes",
        "sharing",
        "tracing",
    },
    "monitor": {"hooks", "measurement", "numerics", "sites", "tracing"},
    "perturb": {
        "arguments",
        "classes",
        "data",
        "intake",
        "measurement",
        "metrics",
        "models",
        "network",
        "numerics",
        "processes",
        "sharing",
        "stats",
    },
    "stability": {
        "arguments",
        "causes",
        "classes",
        "data",
        "hooks",
        "intake",
        "measurement",
        "metrics",
        "network",
        "numerics",
        "operators",
        "processes",
        "sharing",
        "sites",
        "stats",
        "surgery",
        "table",
    },
    "sweeping": {
        "arguments",
        "data",
        "files",
        "hooks",
        "measurement",
        "models",
        "processes",
        "runs",
        "table",
    },
    "budget": {
        "arguments",
        "causes",
        "intake",
        "measurement",
        "metrics",
        "network",
        "numerics",
        "processes",
        "sharing",
        "sites",
        "stability",
        "stats",
        "table",
    },
    "integrations": {"hooks", "layers", "monitor", "sites"},
    "training": {
        "arguments",
        "classes",
        "data",
        "files",
        "identity",
        "layers",
        "models",
        "network",
        "numerics",
        "perturb",
        "processes",
        "surgery",
    },
    "analysis": {
        "arguments",
        "budget",
        "causes",
        "classes",
        "data",
        "files",
        "hooks",
        "identity",
        "intake",
        "latency",
        "measurement",
        "metrics",
        "models",
        "network",
        "operators",
        "pairing",
        "perturb",
        "processes",
        "runs",
        "sharing",
        "sites",
        "stability",
        "stats",
        "surgery",
        "synthetic",
        "table",
    },
    "page": {
        "analysis",
        "arguments",
        "codebook",
        "figures",
        "files",
        "operators",
        "runs",
        "stats",
        "table",
    },
    "experiments": None,  # may use every room but those above it, as the next two
    "study": None,
    "cli": None,
    "__main__": None,
    "__init__": {"arguments"},
}
THIRD_PARTY_OWNERS = {
    "timm": {"classes", "models"},
    "antialiased_cnns": {"models"},
    "matplotlib": {"figures"},
    "jinja2": {"page"},
    "click": {"cli", "experiments", "study", "terminal"},
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


@cache
def imports_of(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_rule():
    assert {room_of(path) for path in SOURCES} <= set(ALLOWED)


def test_the_map_names_every_room_once():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    section = text.partition("## Where things are")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", section)
    assert sorted(named) == sorted(set(ALLOWED) - {"errors", "__main__", "__init__"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("spectral.")}
    used -= {"errors", room}
    allowed = ALLOWED[room]
    above = {"study": {"cli"}, "experiments": {"cli", "study"}}
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
