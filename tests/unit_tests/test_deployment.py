"""The files for containers and systemd: what they call exists, with these options, and what they copy is there."""

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from lince_rag.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string((DEPLOY / "lince-rag.service").read_text(encoding="utf-8"))
    return parsed


def commands() -> list[list[str]]:
    """All calls of lince-rag in the files, in their comments, and in the documentation of the server."""
    (listed,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    compose = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", each) for each in COMPOSE["services"]["app"]["command"]]
    found = [json.loads(listed), compose, shlex.split(unit()["Service"]["ExecStart"])]
    texts = [path.read_text(encoding="utf-8") for path in (DEPLOY / "compose.yaml", ROOT / "docs" / "serving.md")]
    lines = re.findall(r"^(?:\$ |#.*run --rm app )(lince-rag .*)$", "\n".join(texts), re.MULTILINE)
    return [*found, *(shlex.split(line, comments=True) for line in lines)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_are_those_of_the_program(command: list[str]) -> None:
    assert Path(command[0]).name == "lince-rag"
    group: Any = typer.main.get_command(app)
    arguments = command[1:]
    while hasattr(group, "commands"):
        group, arguments = group.commands[arguments[0]], arguments[1:]
    # Fails for an option that does not exist, and for a value of the wrong kind.
    context = group.make_context("lince-rag", list(arguments))
    assert context.params


def test_what_is_copied_is_there_and_what_is_installed_is_an_extra() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"constraints.txt", "pyproject.toml", "lince_rag", "prompts"} <= set(names)
    assert not [name for name in names if not (ROOT / name).exists()]
    extras = re.findall(r"'\.\[(.*)\]'", DOCKERFILE)[0].split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    # Nothing runs as root, and what is to be kept is in a volume.
    assert DOCKERFILE.index("USER lince") < DOCKERFILE.index("\nCMD")
    assert "VOLUME /data" in DOCKERFILE


def test_compose_publishes_the_server_on_this_machine_only() -> None:
    services = COMPOSE["services"]
    assert services["app"]["ports"] == ["127.0.0.1:8790:8790"]
    assert "ports" not in services["model"]
    build = services["app"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert f"http://model:{services['model']['command'][5]}/v1" in services["app"]["command"]
    assert set(services["app"]["depends_on"]) <= set(services)


def test_the_unit_leaves_time_to_end_and_may_write_its_index_only() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > 10
    index = Path(shlex.split(service["ExecStart"])[3])
    assert index.is_relative_to(service["ReadWritePaths"])
    assert Path(service["ReadWritePaths"]).name == service["StateDirectory"]
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
