"""MkDocs calls this while it builds the site: pages that are written by code, and links to files outside ``docs``.

The reference of the commands, of the HTTP API and of the Python names, and the examples of prompts, are made from
the package itself, so that they cannot say anything else than it does.
"""

import asyncio
import json
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT: Final = Path(__file__).parents[2]

# Files outside docs that pages link to: they are pages of the site, too, but in no menu.
PROJECT_PAGES: Final = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "tests/benchmarks/RESULTS.md": "project/results.md",
    "tests/benchmarks/household/README.md": "project/household.md",
    "LICENSE": "project/LICENSE.txt",
}

# Classes that the exported ones share or return.
SHARED: Final = ("models.native_model.NativeModel", "chain.rag.RagChain", "index.ingestion.IngestReport")

# The models whose cards describe a format of their own; later ones were published with a chat template.
FORMATS: Final = (
    "lince-zero",
    "aira-2-portuguese-1b7",
    "llama-2-7b-spanish",
    "alpaca-lora-ptbr-7b",
    "falcon-40b-instruct",
)
CONVERSATION: Final = {
    "es": ["Responde con una frase.", "¿Cuánto es la fianza?", "Contrato", "La fianza es de 815 euros."],
    "pt": ["Responda com uma frase.", "Quanto é a caução?", "Contrato", "A caução é de 815 euros."],
}

_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written by code."""
    pages = {
        "reference/python.md": python_page(),
        "reference/cli.md": cli_page(),
        "reference/http.md": http_page(schema := openapi()),
        "reference/openapi.json": json.dumps(schema, ensure_ascii=False, indent=1),
        "explanation/prompt-formats.md": prompt_formats_page(),
    }
    pages |= {page: (PROJECT / path).read_text(encoding="utf-8") for path, page in PROJECT_PAGES.items()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to the pages made of them."""
    here = page.file.src_uri
    written = {made: path for path, made in PROJECT_PAGES.items()}.get(here, f"docs/{here}")

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(written), match[1]))
        target = PROJECT_PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return match[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return _LINK.sub(replace, markdown)


def python_page() -> str:
    """Write what mkdocstrings fills with the docstrings of the public names."""
    import lince_rag

    names = "\n\n".join(f"::: lince_rag.{name}" for name in lince_rag.__all__)
    options = "::: lince_rag.errors\n    options:\n      show_root_heading: false\n      heading_level: 3"
    shared = "\n\n".join(f"::: lince_rag.{name}\n    options:\n      heading_level: 3" for name in SHARED)
    return (
        f"# Python\n\nEvery name that `lince_rag` exports, what they share or return, and errors.\n\n{names}\n\n"
        f"## What they share or return\n\n{shared}\n\n## Errors\n\n{options}\n"
    )


def cli_page() -> str:
    """Write what typer says of the commands, in English; the hidden ones are left out."""
    command = [sys.executable, "-m", "typer", "lince_rag.cli.app", "utils", "docs", "--name", "lince-rag"]
    environment = {**os.environ, "LC_ALL": "en_US.UTF-8", "PYTHONPATH": str(PROJECT), "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    text = re.sub(r"^\* `shell`.*\n", "", done.stdout, flags=re.MULTILINE)
    text = re.sub(r"^## `lince-rag shell`\n(?:(?!## ).*\n)*", "", text, flags=re.MULTILINE)
    text = text.replace("# `lince-rag`", "# Command line", 1).replace("## `lince-rag ", "## `")
    return f"{text}\nExit statuses: 0 done, 1 some documents could not be read, 2 an error, 130 Ctrl-C.\n"


def openapi() -> dict[str, Any]:
    """Ask the server's own application, without an index, for its description."""
    return asyncio.run(_openapi())


async def _openapi() -> dict[str, Any]:
    import httpx

    from lince_rag.serve.app import create_app
    from lince_rag.serve.state import ServerState

    with tempfile.TemporaryDirectory() as folder:
        app = create_app([], ServerState(Path(folder)), hosts=frozenset({"localhost"}))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            described: dict[str, Any] = (await client.get("/v1/openapi.json")).raise_for_status().json()
    return described


def http_page(schema: dict[str, Any]) -> str:
    """Write the routes and the objects of an OpenAPI description."""
    lines = [
        "# HTTP API",
        "The routes of `lince-rag serve` ([how to serve](../serving.md)), from its own description: a running"
        " server has it at `/v1/openapi.json`, and [here](openapi.json) it is as a file. MCP is at `/mcp`.",
    ]
    operations = [(path, method, each) for path, item in schema["paths"].items() for method, each in item.items()]
    for tag in dict.fromkeys(each["tags"][0] for *_, each in operations):
        lines.append(f"## {tag[0].upper()}{tag[1:]}")
        for path, method, each in operations:
            if each["tags"][0] == tag:
                lines += _operation(path, method, each)
    lines.append("## Objects")
    for name, each in schema["components"]["schemas"].items():
        if "ValidationError" not in name:
            lines += [f"### {name}", each.get("description", ""), _fields(each)]
    return "\n\n".join(line for line in lines if line) + "\n"


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`"
    yield operation.get("description", "")
    if parameters := operation.get("parameters"):
        fields = {each["name"]: {**each, **each["schema"]} for each in parameters}
        yield _fields(
            {"properties": fields, "required": [each["name"] for each in parameters if each["required"]]}
        )
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body (`{kind}`): {_kind(content['schema'])}"
    for status, response in operation["responses"].items():
        if status != "422":
            kinds = [_kind(each["schema"]) for each in response.get("content", {}).values() if each.get("schema")]
            yield f"Answer: {status}{', ' + ', '.join(kinds) if kinds else ''}"


def _fields(schema: dict[str, Any]) -> str:
    rows = ["| field | type | |", "| --- | --- | --- |"]
    for name, each in schema.get("properties", {}).items():
        notes = [each.get("description", "")]
        notes += ["Required."] if name in schema.get("required", []) else []
        notes += [f"Default: `{json.dumps(each['default'])}`."] if each.get("default") is not None else []
        rows.append(f"| `{name}` | {_kind(each)} | {' '.join(filter(None, notes))} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _kind(schema: dict[str, Any]) -> str:
    """Name a type in a few words, with its limits, and with a link if it is an object of its own."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})" if not name.startswith("Body_") else "a form with `files`"
    if choices := schema.get("anyOf"):
        return " or ".join(_kind(each) for each in choices)
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    kind = "list" if schema.get("type") == "array" else str(schema.get("type", "any"))
    if "items" in schema:
        kind += f" of {_kind(schema['items'])}"
    names = {"minimum": "≥", "maximum": "≤", "maxLength": "length ≤", "maxItems": "at most"}
    return ", ".join([kind, *(f"{word} {schema[name]:g}" for name, word in names.items() if name in schema)])


def prompt_formats_page() -> str:
    """Write the prompt of one conversation in the format of each model, rendered by its template."""
    from lince_rag.prompting.registry import get_model, load_registry
    from lince_rag.prompting.templates import ChatTemplate

    parts = [(PROJECT / "docs" / "site" / "prompt-formats.md").read_text(encoding="utf-8")]
    for name in FORMATS:
        spec = get_model(name)
        system, question, title, text = CONVERSATION["pt" if spec.languages[0] == "pt" else "es"]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        rendered = ChatTemplate.from_spec(spec).render(messages, [{"title": title, "text": text}]).text
        described = re.match(r"\{#-?\s*(.*?)\s*-?#\}", spec.template_text(), re.DOTALL)
        comment = re.sub(r"\n[ ]+", "\n", described[1]) if described else ""
        parts.append(f"## {name}\n\n{comment}\n\n```text\n{rendered}\n```\n")
    same: dict[str, list[str]] = {}
    for name, spec in load_registry().items():
        if spec.parameters and name not in FORMATS:
            same.setdefault(spec.template, []).append(f"`{name}`")
    rows = "\n".join(f"| `prompts/{template}` | {', '.join(names)} |" for template, names in same.items())
    parts.append(f"## Later models\n\n| template | models |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)
