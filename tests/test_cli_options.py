"""The same words for the same options in every command, and JSON of whatever table is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner
from command import environment

from spectral import cli
from spectral.cli.options import parse_names

COMMANDS = dict(cli.main.commands)
SMALL = ["--images", "synthetic", "--limit", "4", "--quiet"]
PRINT_TABLES = {
    "sites": ["bundled/resnet20"],
    "measure": ["bundled/resnet20", "--metrics", "avr,sis", *SMALL],
    "compare": ["bundled/resnet20", "bundled/resnet20-blurpool", "--metrics", "avr", *SMALL],
    "attribute": ["bundled/resnet20", *SMALL],
    "budget": ["bundled/resnet20", "--factor", "2", *SMALL],
    "list": ["metrics"],
    "convert": ["bundled/resnet20", "--method", "flc", "--quiet"],
}


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {name: p for p in command.params if isinstance(p, click.Option) for name in p.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_is_understood_everywhere(name):
    assert "--quiet" in options_of(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_given_twice_is_refused_unless_it_collects(name):
    """The last one would win, and the first be forgotten without a word."""
    known = dict.fromkeys(options_of(COMMANDS[name]).values())
    once = [o for o in known if not (o.multiple or o.is_flag or o.count)]
    assert once or name == "list"
    for option in once:
        result = CliRunner().invoke(cli.main, [name, option.opts[0], "1", option.opts[-1], "2"])
        assert result.exit_code == 2
        assert f"{option.opts[-1]} is given 2 times" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if n not in {"list", "plot", "report"}])
def test_whatever_runs_a_network_takes_a_device(name):
    assert "--device" in options_of(COMMANDS[name])


def test_one_word_has_one_meaning():
    """An option of one name reads its value in one way, whichever command it belongs to."""
    kinds: dict[str, dict[Any, list[str]]] = {}
    for name, command in COMMANDS.items():
        for word, option in options_of(command).items():
            # ranges differ where a test needs two images; what is written differs in kind
            kind = type(option.type).__name__, option.multiple, option.is_flag
            kinds.setdefault(word, {}).setdefault(kind, []).append(name)
    known = {"--models", "--images", "--metrics", "--method", "--seed"}
    differing = {word: found for word, found in kinds.items() if len(found) > 1 and word not in known}
    assert not differing


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINT_TABLES)
def test_what_is_printed_is_written_as_json(name, tmp_path):
    path = tmp_path / "deep" / "found.json"
    arguments = [name, *PRINT_TABLES[name], "--json", str(path)]
    if name == "convert":
        arguments += ["--out", str(tmp_path / "net.safetensors")]
    done = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text(), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
    rows = content["rows"] if "rows" in content else content["sites"]
    assert rows
    shown = {key for row in rows for key in ("site", "name") if row.get(key)}
    for row in rows:
        for key in shown:
            assert not row.get(key) or name in {"budget"} or str(row[key]) in done.output


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(
        cli.main, ["measure", "no/such/model", "--json", str(tmp_path / "file" / "found.json")]
    )
    assert done.exit_code == 2
    assert "can't write to" in done.output


def test_a_name_that_is_given_twice_counts_once():
    assert parse_names(None, None, "flc, aps,flc") == ("flc", "aps")


def test_what_a_network_is_belongs_to_from(tmp_path):
    done = CliRunner().invoke(
        cli.main,
        ["train", "resnet20", "--classes", "3", "--data", str(tmp_path), "--out", str(tmp_path / "o")],
    )
    assert done.exit_code == 2
    assert "--from" in done.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    given = {**environment(), "_SPECTRAL_COMPLETE": f"{shell}_source"}
    program = (
        "import sys; sys.argv[0] = 'spectral'; from spectral.cli import main; main(prog_name='spectral')"
    )
    run = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True)
    assert "spectral" in run.stdout
    words = {
        **environment(),
        "_SPECTRAL_COMPLETE": "bash_complete",
        "COMP_WORDS": "spectral mea",
        "COMP_CWORD": "1",
    }
    run = subprocess.run([sys.executable, "-c", program], env=words, capture_output=True, text=True)
    assert "measure" in run.stdout
