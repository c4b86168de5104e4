"""Servers that read more of a request at an address of their own than at ``/v1/completions``: Ollama and TGI.

Requests for completions are written as they read them, and their answers are read as completions, after
https://github.com/ollama/ollama/blob/main/docs/api.md and
https://huggingface.github.io/text-generation-inference. Both take text, not token ids.
"""

from collections.abc import Mapping
from typing import Any, Final

OLLAMA: Final = "Ollama"
TGI: Final = "Text Generation Inference"

# Where each says what it is, and a name that only its answer has.
ADDRESSES: Final[Mapping[str, tuple[str, str]]] = {
    OLLAMA: ("/api/version", "version"),
    TGI: ("/info", "max_total_tokens"),
}


def write(kind: str, payload: dict[str, Any], window: int) -> tuple[str, dict[str, Any]]:
    """Write a request for a completion as a server reads it.

    Args:
        kind: ``OLLAMA`` or ``TGI``.
        payload: The request.
        window: Tokens of prompt and answer together.

    Returns:
        The path and what is posted there.
    """
    return _write_ollama(payload, window) if kind == OLLAMA else _write_tgi(payload)


def read(kind: str, event: dict[str, Any]) -> dict[str, Any]:
    """Read an answer, or a part of one, as that of a completion."""
    if kind == OLLAMA:
        reason = event.get("done_reason", "stop") if event.get("done") else None
        return _completion(event.get("response"), reason, event.get("eval_count"))
    details, token = event.get("details"), event.get("token")
    # The last part of a stream has the whole text, too.
    text = event.get("generated_text") if token is None else None
    if isinstance(token, dict):
        text = "" if token.get("special") else token.get("text")
    ended = details if isinstance(details, dict) else {}
    return _completion(text, ended.get("finish_reason"), ended.get("generated_tokens"))


def _completion(text: Any, reason: Any, tokens: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        # Without choices, which is an error.
        return {}
    return {"choices": [{"text": text, "finish_reason": reason}], "usage": {"completion_tokens": tokens}}


def _write_ollama(payload: dict[str, Any], window: int) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {
        **{name: payload[name] for name in ("temperature", "top_p", "min_p", "seed") if name in payload},
        "num_ctx": window,
        "num_predict": payload["max_tokens"],
        "top_k": max(payload["top_k"], 0),
        # As in transformers, the penalty counts the whole window.
        "repeat_penalty": payload["repetition_penalty"],
        "repeat_last_n": -1,
        # Those of its Modelfile would not be those of the row.
        "stop": [],
    }
    # By default, it cuts a prompt or drops its beginning where the window ends.
    kept = {name: payload[name] for name in ("model", "prompt", "stream")}
    return "/api/generate", {**kept, "raw": True, "truncate": False, "shift": False, "options": options}


def _write_tgi(payload: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    parameters = {
        "max_new_tokens": payload["max_tokens"],
        "repetition_penalty": payload["repetition_penalty"],
        "do_sample": payload["temperature"] > 0,
        "details": True,
        "return_full_text": False,
    }
    # It refuses values that change nothing.
    if payload["temperature"] > 0:
        parameters["temperature"] = payload["temperature"]
    if payload["top_k"] > 0:
        parameters["top_k"] = payload["top_k"]
    if payload["top_p"] < 1:
        parameters["top_p"] = payload["top_p"]
    if "seed" in payload:
        parameters["seed"] = payload["seed"]
    path = "/generate_stream" if payload["stream"] else "/generate"
    return path, {"inputs": payload["prompt"], "parameters": parameters}
