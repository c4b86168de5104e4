"""What a call sets: fields of a model that may be given in a call, under the same limits; threads of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lince_rag.engines import GenerationSettings
from lince_rag.errors import ConfigurationError
from lince_rag.text.evidence import MINIMUM_CONFIDENCE
from lince_rag.text.language import Language


class CallSettings(BaseModel):
    """The fields that a call may override: `invoke(…, temperature=0)`; ``NativeModel`` explains them."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    num_beams: int | None = Field(default=None, ge=1)
    repetition_penalty: float | None = Field(default=None, gt=0.0)
    stop: list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @field_validator("stop", mode="before")
    @classmethod
    def _read_one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class _Call(CallSettings):
    """All settings of a call."""

    model_config = ConfigDict(extra="forbid")

    language: Language | None = None
    minimum_confidence: float = Field(default=MINIMUM_CONFIDENCE, ge=0.0, le=1.0)


# The fields that are no parameters of LangChain's methods.
CALL_SETTINGS: Final = frozenset(CallSettings.model_fields) - {"stop"}

# The keywords of a call that ``merge_settings`` takes.
CALL_KEYWORDS: Final = frozenset(_Call.model_fields)


def merge_settings(fields: CallSettings, call: Mapping[str, Any]) -> GenerationSettings:
    """Return the fields with what a call overrides; a wrong value raises ``ConfigurationError``."""
    given = {**{name: getattr(fields, name) for name in CallSettings.model_fields}, **call}
    try:
        merged = _Call.model_validate(given)
    except ValidationError as error:
        found = error.errors()[0]
        name = str(found["loc"][0])
        raise ConfigurationError(
            f"{name}={given[name]!r} is not valid in a call: {found['msg'].lower()}.",
            hint="The limits are those of the model's field of that name.",
        ) from error
    return GenerationSettings(**{**merged.model_dump(), "stop": tuple(merged.stop or ())})


def batch_configs(
    config: RunnableConfig | Sequence[RunnableConfig] | None, count: int, threads: int
) -> list[RunnableConfig]:
    """Return the configurations of a batch with a thread for each call; LangChain itself has few by default.

    The threads only wait: the answers are computed together.
    """
    return [
        {**each, "max_concurrency": each.get("max_concurrency") or threads}
        for each in get_config_list(config, count)
    ]
