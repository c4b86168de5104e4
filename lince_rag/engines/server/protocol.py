"""What is asked of a model server and what it answers: settings, grammars, and the reading of choices."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lince_rag.engines.base import FinishReason, GenerationSettings, is_sampling
from lince_rag.engines.json_schema.constraints import read_schema, schema_grammar
from lince_rag.engines.json_schema.gbnf import GbnfGrammar
from lince_rag.engines.logprobs import read_logprobs
from lince_rag.engines.server import dialects
from lince_rag.errors import ConfigurationError, EngineError
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.templates import ChatTemplate, Prompt

LLAMA_CPP: Final = "llamacpp"
VLLM: Final = "vllm"
SGLANG: Final = "sglang"

# The servers that take token ids as a prompt; the others take text.
TAKES_IDS: Final = (LLAMA_CPP, VLLM, SGLANG)
HAS_TOKENIZER: Final = (LLAMA_CPP, VLLM)

# How servers are asked to end a whole answer at its stop texts exactly as it is cut here. llama-server leaves the
# stop text out and keeps what only looks like the beginning of one (which it drops in a stream); vLLM keeps it.
_EXACT_STOPS: Final[Mapping[str, dict[str, Any]]] = {LLAMA_CPP: {}, VLLM: {"include_stop_str_in_output": True}}

# The most stop texts that vLLM accepts.
_VLLM_STOPS: Final = 4

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "eos_token": "stop",
    "stop_sequence": "stop",
}


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        kind: Who it says it is: ``LLAMA_CPP``, ``VLLM``, ``SGLANG``, one of ``dialects.ADDRESSES`` or something
            else.
        model: The name under which it runs the model.
        context_window: Tokens of prompt and answer together, if it says so.
    """

    kind: str
    model: str
    context_window: int | None


def choose_model(listed: Any, wanted: Sequence[str], base_url: str) -> ServerFacts:
    """Choose the model of a server's ``/v1/models`` that has one of the wanted names, or the only one it has.

    Raises:
        EngineError: It lists several models, and none has one of these names, or it lists none.
    """
    rows = listed_models(listed)
    # Ollama adds a tag to every name.
    named = [row for name in wanted for row in rows if row["id"] in {name, f"{name}:latest"}]
    if not named and len(rows) != 1:
        names = ", ".join(row["id"] for row in rows) or "no model"
        raise EngineError(
            f"The server {base_url} does not run {wanted[0]!r}; it lists {names}.",
            hint="Start it with that name (vLLM: --served-model-name, llama-server: --alias).",
        )
    row = (named or rows)[0]
    window = row.get("max_model_len")
    return ServerFacts(str(row.get("owned_by", "")), row["id"], window if isinstance(window, int) else None)


def listed_models(listed: Any) -> list[dict[str, Any]]:
    """Return the models that a server lists, each with its name as ``id``."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    rows = rows if isinstance(rows, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def sampling_fields(kind: str, options: dict[str, Any], seed: int | None, window: int) -> dict[str, Any]:
    """Write generation options, those of ``generation_options``, in a server's words.

    Everything is stated, because servers have defaults of their own (llama-server: ``top_k`` 40, ``min_p`` 0.05).
    """
    fields: dict[str, Any] = {"max_tokens": options["max_new_tokens"]}
    if seed is not None:
        fields["seed"] = seed
    penalty = options.get("repetition_penalty", 1.0)
    if is_sampling(options):
        # transformers' defaults where a card leaves them out.
        fields |= {"temperature": options.get("temperature", 1.0), "top_p": options.get("top_p", 1.0)}
        top_k = options.get("top_k", 50)
    else:
        fields |= {"temperature": 0, "top_p": 1.0}
        top_k = -1
    if kind == LLAMA_CPP:
        # As in transformers, the penalty counts the whole window, and the temperature comes first.
        samplers = ["penalties", "temperature", "top_k", "top_p"]
        return fields | {
            "top_k": top_k, "min_p": 0, "repeat_penalty": penalty, "repeat_last_n": window, "samplers": samplers
        }  # fmt: skip
    if kind in TAKES_IDS or kind in dialects.ADDRESSES:
        return fields | {"top_k": top_k, "min_p": 0, "repetition_penalty": penalty}
    return fields | ({"repetition_penalty": penalty} if penalty != 1 else {})


def reply_fields(kind: str, stops: Sequence[str], uncut: str, *, streamed: bool) -> dict[str, Any]:
    """Ask for a stream, or for the answer in one reply, if the server then ends it at its stop texts.

    Where it would not, the answer is streamed, so that the request can be closed when a stop text has come.

    Args:
        kind: The kind of the server.
        stops: The texts that cut the answer.
        uncut: The beginning of an answer that they do not cut; empty if there is none.
        streamed: Whether the caller needs a stream.
    """
    stops = list(dict.fromkeys(text for text in stops if text))
    # One that is complete only after another one in it never ends an answer; llama-server would cut there.
    first = [text for text in stops if not any(other in text[:-1] for other in stops)]
    is_exact = kind in _EXACT_STOPS and not uncut and (kind != VLLM or len(first) <= _VLLM_STOPS)
    if streamed or (first and not is_exact):
        return {"stream": True, "stream_options": {"include_usage": True}}
    return {"stream": False, "stop": first, **_EXACT_STOPS[kind]} if first else {"stream": False}


def message_fields(kind: str, prompt: Prompt, template: ChatTemplate) -> dict[str, Any]:
    """Write the messages and documents of a prompt for a server that has the template itself.

    Raises:
        ConfigurationError: A message has an input, for which the interface has no place.
    """
    if any(message.get("input") for message in prompt.messages):
        raise ConfigurationError(
            "endpoint='chat' cannot send a message with an input.",
            hint="Put it into the message or into the documents, or use endpoint='completions'.",
        )
    messages = [{**message, "content": template.neutralize(message["content"])} for message in prompt.messages]
    documents = [
        {key: template.neutralize(document[key]) for key in ("title", "text") if document.get(key)}
        for document in prompt.documents
    ]
    fields: dict[str, Any] = {"messages": messages}
    if documents:
        fields["chat_template_kwargs"] = {"documents": documents}
    # llama-server would look for thoughts in the answer.
    return fields | ({"reasoning_format": "none"} if kind == LLAMA_CPP else {})


def logprobs_fields(kind: str, endpoint: str, spec: ModelSpec, alternatives: int | None) -> dict[str, Any]:
    """Ask how likely each token was, and for as many of the likeliest; ``None`` asks for nothing.

    Raises:
        ConfigurationError: The server is of a kind that is not known to say it.
    """
    if alternatives is None:
        return {}
    if endpoint == "chat":
        return {"logprobs": True, "top_logprobs": alternatives}
    if kind not in TAKES_IDS:
        raise ConfigurationError(
            f"A server of the kind {kind!r} does not say how likely the tokens of {spec.name!r} are.",
            hint="Use llama-server, vLLM or SGLang, or leave logprobs out.",
        )
    # For llama-server 0 means none at all; the answer's own token is listed beside the likeliest.
    return {"logprobs": max(alternatives, 1)}


def schema_fields(kind: str, spec: ModelSpec, settings: GenerationSettings, limit: int) -> dict[str, Any]:
    """Write the JSON schema of the settings as the grammar that a server constrains its answer with.

    Raises:
        ConfigurationError: The server is of a kind without grammars, or the schema does not fit.
    """
    if settings.json_schema is None:
        return {}
    if kind not in TAKES_IDS:
        raise ConfigurationError(
            f"A server of the kind {kind!r} cannot hold answers of {spec.name!r} to a JSON schema.",
            hint="Use llama-server, vLLM or SGLang, or leave the schema and the tools out.",
        )
    grammar = schema_grammar(settings.json_schema, limit, text_allowed=settings.text_allowed, notation=GbnfGrammar)
    if kind == VLLM:
        return {"structured_outputs": {"grammar": grammar}}
    return {"ebnf": grammar} if kind == SGLANG else {"grammar": grammar}


def check_json(text: str, schema: str, forbidden: Sequence[str], base_url: str) -> None:
    """Check JSON that a server returned.

    Raises:
        EngineError: It is not valid for the schema, or contains a forbidden text.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        value = json.loads(text)
    except ValueError as error:
        reason = f"is not JSON ({error})"
    else:
        found = best_match(Draft202012Validator(read_schema(schema)).iter_errors(value))
        stop = next((each for each in forbidden if each and each in text), None)
        if found is None and stop is None:
            return
        reason = (
            f"contains the stop text {stop!r}" if found is None else f"breaks the schema: {found.message[:200]}"
        )
    raise EngineError(
        f"The server {base_url} answered {text[:80]!r}, which {reason}.",
        hint="Ask again, raise max_tokens, or use a simpler schema: servers enforce no patterns and formats.",
    )


@dataclass(frozen=True)
class Choice:
    """One answer, or the next part of one."""

    text: str
    finish_reason: FinishReason | None
    # As in ``Generation``, control tokens included; empty if the server says nothing of the tokens.
    logprobs: list[dict[str, Any]]


def read_choices(reply: Any, base_url: str) -> list[Choice]:
    """Read the choices of a reply or of one event of a stream."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise EngineError(
            f"The server {base_url} answers without a list of choices.",
            hint="Check that base_url is the address of a model server.",
        )
    return [
        Choice(_text(choice), _finish_reason(choice, base_url), read_logprobs(choice.get("logprobs"), base_url))
        for choice in choices
    ]


def _text(choice: dict[str, Any]) -> str:
    """Return the text of a completion, or the content of a message or of a part of one."""
    message = choice.get("delta") or choice.get("message")
    return str((message.get("content") if isinstance(message, dict) else choice.get("text")) or "")


def _finish_reason(choice: dict[str, Any], base_url: str) -> FinishReason | None:
    reason = choice.get("finish_reason")
    if reason is None:
        return None
    if reason not in _FINISH_REASONS:
        raise EngineError(
            f"The server {base_url} ended an answer with finish_reason={reason!r}.", hint="See the server's log."
        )
    return _FINISH_REASONS[reason]


def read_usage(reply: Any, name: str = "completion_tokens") -> int | None:
    """Return how many tokens the answer has, its end token included, if the reply says so; or another count."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else None
