"""``lince-rag mcp``: an index for any client of the Model Context Protocol."""

from typing import Annotated

import typer

from lince_rag.cli.options import (
    DEFAULT_INDEX,
    BasePathOption,
    ConfidenceOption,
    DeviceOption,
    DtypeOption,
    IndexOption,
    ModelOption,
    ModelPathOption,
    ModelsFileOption,
    QuantizationOption,
    UnsupportedOption,
    make_chain,
)


def serve(
    index: IndexOption = DEFAULT_INDEX,
    http: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Serve streamable HTTP on this port of 127.0.0.1."),
    ] = None,
    model: ModelOption = "extractive",
    model_path: ModelPathOption = None,
    base_model_path: BasePathOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages to read for an answer.")] = 5,
    on_unsupported: UnsupportedOption = "flag",
    minimum_confidence: ConfidenceOption = 0.5,
    models_file: ModelsFileOption = None,
) -> None:
    """Serve search and ask to MCP clients, over standard input and output or HTTP."""
    from lince_rag.index.index import Index
    from lince_rag.serve.mcp import create_server

    with Index.open(index, create=False) as opened:
        chain = make_chain(
            opened,
            k=k,
            on_unsupported=on_unsupported,
            minimum_confidence=minimum_confidence,
            model=model,
            models_file=models_file,
            model_path=model_path,
            base_model_path=base_model_path,
            device=device,
            dtype=dtype,
            quantization=quantization,
        )
        server = create_server(opened, chain)
        if http is None:
            server.run("stdio")
        else:
            # Loopback only: there is no authentication. Its own checks refuse requests of foreign web pages.
            server.run("streamable-http", host="127.0.0.1", port=http)
