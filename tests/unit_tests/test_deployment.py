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
from lince_rag.index.locations import SharedLocation, find_location

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE_FILES = ("compose.yaml", "compose-shared.yaml")
COMPOSE, SHARED = (yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8")) for name in COMPOSE_FILES)


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string((DEPLOY / "lince-rag.service").read_text(encoding="utf-8"))
    return parsed


def commands() -> list[list[str]]:
    """All calls of lince-rag in the files, in their comments, and in the documentation of the server."""
    (listed,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    composed = [
        [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in file["services"]["app"]["command"]]
        for file in (COMPOSE, SHARED)
    ]
    found = [json.loads(listed), *composed, shlex.split(unit()["Service"]["ExecStart"])]
    files = [*(DEPLOY / name for name in COMPOSE_FILES), ROOT / "docs" / "serving.md"]
    texts = [path.read_text(encoding="utf-8") for path in files]
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


@pytest.mark.parametrize("file", [COMPOSE, SHARED], ids=COMPOSE_FILES)
def test_compose_publishes_the_server_on_this_machine_only(file: dict[str, Any]) -> None:
    services = file["services"]
    assert services["app"]["ports"] == ["127.0.0.1:8790:8790"]
    assert [name for name, service in services.items() if "ports" in service] == ["app"]
    for service in services.values():
        assert ("build" in service) != ("image" in service)
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert set(services["app"]["depends_on"]) < set(services)
    # What is to be kept is in a volume of its own.
    mounted = [each.partition(":")[0] for service in services.values() for each in service.get("volumes", ())]
    assert sorted(file["volumes"]) == sorted(name for name in mounted if name.isalpha())


def test_compose_names_the_model_server() -> None:
    services = COMPOSE["services"]
    assert f"http://model:{services['model']['command'][5]}/v1" in services["app"]["command"]


def test_compose_names_the_servers_of_a_shared_index() -> None:
    services = SHARED["services"]
    app, database, vectors = (services[name] for name in ("app", "database", "vectors"))
    location = find_location(app["command"][3])
    assert isinstance(location, SharedLocation)
    owner = database["environment"]
    assert location.ledger == f"postgresql://{owner['POSTGRES_USER']}@database/{owner['POSTGRES_DB']}"
    assert location.chroma == f"http://vectors:{vectors['command'][-1]}"
    # The copy of the terms, keys and uploads are in the volume; Chroma's data in another one.
    assert app["volumes"] == ["server:/data"]
    assert location.folder.is_relative_to("/data")
    assert app["command"][5].startswith("/data/")
    assert vectors["command"][3] == "/data"
    # The password comes from outside, and there is no other one; it is nowhere in a command.
    assert app["environment"]["PGPASSWORD"] == owner["POSTGRES_PASSWORD"] == "${DATABASE_PASSWORD:?}"
    # The server waits until both answer.
    assert app["depends_on"] == {name: {"condition": "service_healthy"} for name in ("database", "vectors")}
    assert all("healthcheck" in service for service in (database, vectors))


def test_the_unit_leaves_time_to_end_and_may_write_its_index_only() -> None:
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > 10
    index = Path(shlex.split(service["ExecStart"])[3])
    assert index.is_relative_to(service["ReadWritePaths"])
    assert Path(service["ReadWritePaths"]).name == service["StateDirectory"]
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
