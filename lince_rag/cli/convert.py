"""``lince-rag convert``: the weights of a model in another format."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lince_rag.errors import ConfigurationError
from lince_rag.text.language import wording


def convert(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder (or hub id) of a model or an adapter.")],
    to: Annotated[
        Literal["ctranslate2", "safetensors"],
        typer.Option(
            help="ctranslate2: a new folder that answers faster on a CPU. safetensors: the folder's .bin files as "
            "safetensors, beside them."
        ),
    ],
    quantization: Annotated[
        Literal["int8", "float32"] | None,
        typer.Option(help="For ctranslate2: a byte for each weight, or four. Default: int8."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For ctranslate2: the folder to create. Default: FOLDER with -int8 or -float32."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="For ctranslate2: the base model that an adapter is merged into."),
    ] = None,
) -> None:
    """Convert the weights of a model: for fast answers on a CPU, or from pickle files to safetensors."""
    from lince_rag.cli.localisation import reader_language
    from lince_rag.cli.terminal import diagnostics
    from lince_rag.engines.checkpoints.conversion import convert_to_ctranslate2, convert_to_safetensors

    if to == "safetensors":
        others = {"--quantization": quantization, "--output": output, "--base": base}
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigurationError(
                f"{given[0]} does not go with --to safetensors.", hint="Leave it out, or use --to ctranslate2."
            )
        for file in convert_to_safetensors(Path(folder).expanduser()):
            sys.stdout.write(f"{file}\n")
        return
    language, console = reader_language(), diagnostics()
    written = convert_to_ctranslate2(
        folder,
        output,
        quantization=quantization or "int8",
        base_source=base,
        on_step=lambda step: console.print(wording(f"convert_{step}", language), markup=False),
    )
    sys.stdout.write(f"{written}\n")
