"""What the chat model and the text model share: messages → prompt, and the engine's text → theirs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage

from lince_rag.engines import Generation, GenerationSettings
from lince_rag.errors import ConfigurationError, EngineError, TemplateError
from lince_rag.models.answer_formats import FORMATS, AnswerFormat
from lince_rag.models.messages import join_turns, to_template, with_instructions
from lince_rag.models.model_fields import CALL_SETTINGS, ModelFields
from lince_rag.models.searching import last_question, read_results
from lince_rag.prompting.markers import find_open_string
from lince_rag.prompting.templates import Prompt
from lince_rag.text.language import LANGUAGES, Language, detect_language

_TEXT = AnswerFormat()


class NativeModel(ModelFields):
    """A model that reads its own prompt format; its fields are those of ``ModelFields``."""

    def _render(
        self,
        messages: Sequence[BaseMessage],
        documents: Sequence[Document] = (),
        answer_format: AnswerFormat = _TEXT,
        language: Language | None = None,
    ) -> Prompt:
        """Write messages and documents in the format of the model, and what its answer may be in its language."""
        if self.quotes:
            messages, found = read_results(messages)
            return self._write(*to_template(messages, [*documents, *found]))
        if answer_format.is_text and not any(isinstance(message, ToolMessage) for message in messages):
            # Nothing is said in words of our own; what tells languages apart takes 70 MiB.
            return self._write(*to_template(messages, documents))
        language = self._known(language or detect_language(last_question(messages)))
        if told := answer_format.instructions(language):
            messages = with_instructions(messages, SystemMessage(told))
        return self._write(*to_template(messages, documents, language))

    def _known(self, language: Language) -> Language:
        """Return the language if the model knows it, else the one of ours that it knows best."""
        known = [each for each in LANGUAGES if each in self.spec.languages]
        return language if language in known or not known else min(known, key=self.spec.languages.index)

    def _write(self, turns: Sequence[Mapping[str, str]], documents: Sequence[Mapping[str, Any]]) -> Prompt:
        """Render a prompt; where the format's roles must alternate, neighbouring turns of one role are joined."""
        try:
            return self.template.render(turns, documents)
        except TemplateError:
            joined = join_turns(turns)
            if len(joined) == len(turns):
                raise
            return self.template.render(joined, documents)

    def _generate_batch(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[list[Generation]]:
        """Generate, and mend the markers that were broken in the prompt and repeated in an answer."""
        batch = self.engine.generate_batch(prompts, settings, self.n)
        if self.engine.quotes:
            return batch
        return [
            [replace(candidate, text=self._restore(candidate.text, settings)) for candidate in candidates]
            for candidates in batch
        ]

    def _generate_stream(self, prompt: Prompt, settings: GenerationSettings) -> Iterator[Generation]:
        """Stream, and mend broken markers: from a backslash on, text waits until a marker would be whole."""
        longest = 2 * max(
            map(len, [*self.spec.markers, *self.spec.line_markers, *self.spec.control_tokens]), default=0
        )
        raw, given = "", 0
        for step in self.engine.stream(prompt, settings):
            if self.engine.quotes:
                yield step
                continue
            raw += step.text
            first = find_open_string(raw) if _is_json(raw, settings) else max(len(raw) - longest, 0)
            backslash = raw.find("\\", first)
            held = first if _is_json(raw, settings) else backslash
            whole = raw if step.finish_reason or backslash < 0 else raw[:held]
            text = self._restore(whole, settings) if "\\" in whole else whole
            yield replace(step, text=text[given:])
            given = max(given, len(text))

    def _restore(self, text: str, settings: GenerationSettings) -> str:
        return self.template.restore_json(text) if _is_json(text, settings) else self.template.restore(text)

    def _settings(
        self,
        stop: list[str] | None,
        language: Language | None,
        overrides: dict[str, Any],
        answer_format: AnswerFormat = _TEXT,
    ) -> GenerationSettings:
        """Merge a call's settings into the fields."""
        if unknown := overrides.keys() - CALL_SETTINGS - {"minimum_confidence"}:
            raise ConfigurationError(
                f"{type(self).__name__} takes no {', '.join(sorted(unknown))}.",
                hint=f"It takes {', '.join(sorted([*CALL_SETTINGS, *FORMATS]))}, stop, documents and language.",
            )
        values = {name: getattr(self, name) for name in CALL_SETTINGS}
        settings = GenerationSettings(**values, language=language, stop=tuple(stop or self.stop or ()))
        if self.quotes and answer_format.schema is not None:
            raise EngineError(
                "The embedded engine quotes documents and cannot write JSON of a schema.",
                hint="Choose a model with weights: lince-rag models.",
            )
        if not self.quotes and (schema := answer_format.json_schema()) is not None:
            settings = replace(settings, json_schema=schema, text_allowed=answer_format.text_allowed)
        return replace(settings, **overrides)


def _is_json(text: str, settings: GenerationSettings) -> bool:
    """Tell whether an answer, or the beginning of one, is JSON."""
    return settings.json_schema is not None and (not settings.text_allowed or text.lstrip().startswith("{"))
