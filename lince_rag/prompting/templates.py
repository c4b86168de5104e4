r"""Messages and documents → a prompt in a model's own format, whose structure no content can forge.

A template is a Hugging Face chat template. Every text that comes from outside (a message, a document) is content:
whatever the model would read as structure inside it is broken by one backslash after its first character, visibly
and reversibly (``[INST]`` becomes ``[\INST]``). The prompt records which of its characters are content, so that an
engine can encode those with special tokens off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from lince_rag.errors import TemplateError, UnusedDocumentsError
from lince_rag.prompting.content import (
    ContentWrapper,
    Segment,
    break_joints,
    compile_patterns,
    neutralize,
    restore,
    restore_json,
)
from lince_rag.prompting.registry import ModelSpec
from lince_rag.prompting.sandbox import JinjaTemplate

ROLES: Final = ("system", "user", "assistant")

# What two templates are compared on: white space around a text and blank lines inside, which some trim.
_SYSTEM: Final = {"role": "system", "content": " Responde en español.\n"}
_TURNS: Final = (
    {"role": "user", "content": "Hola.\n\n¿Quién eres? "},
    {"role": "assistant", "content": "Un modelo.\n"},
    {"role": "user", "content": "¿Cuándo vence?"},
)
CONVERSATIONS: Final = {
    "question": _TURNS[:1],
    "system": (_SYSTEM, _TURNS[0]),
    "conversation": _TURNS,
    "conversation_system": (_SYSTEM, *_TURNS),
}


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, and the messages and documents exactly as they were given."""

    segments: tuple[Segment, ...]
    messages: tuple[Mapping[str, str], ...]
    documents: tuple[Mapping[str, Any], ...]
    # Once an engine has measured the prompt: its length in tokens, and the ids if the engine reads ids.
    length: int | None = field(default=None, compare=False)
    ids: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The whole prompt."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Difference:
    """The first place where two templates write a conversation differently.

    Attributes:
        conversation: Its name in ``CONVERSATIONS``.
        position: The characters before it, which are equal.
        ours: What the first template writes from there on.
        theirs: What the other one writes, or its error.
    """

    conversation: str
    position: int
    ours: str
    theirs: str


class ChatTemplate:
    """A chat template, and what counts as structure in its prompts.

    ``special_tokens`` are the values of ``bos_token`` and the like. ``markers`` count anywhere in a text,
    ``line_markers`` at the start of a line; ``control_tokens`` are the texts that the tokenizer turns into control
    ids. The name is used in errors.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        markers: Sequence[str] = (),
        line_markers: Sequence[str] = (),
        control_tokens: Sequence[str] = (),
        name: str = "chat template",
    ) -> None:
        self.name = name
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        tokens = [*control_tokens, *self.special_tokens.values()]
        self.patterns = compile_patterns(markers, line_markers, tokens)
        self._template = JinjaTemplate(source, name)

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> Self:
        """Load the template of a model."""
        return cls(
            spec.template_text(),
            special_tokens=spec.special_tokens,
            markers=spec.markers,
            line_markers=spec.line_markers,
            control_tokens=spec.control_tokens,
            name=spec.template,
        )

    def neutralize(self, text: str) -> str:
        """Break every marker and control token of this format in a text."""
        return neutralize(text, self.patterns)

    def restore(self, text: str) -> str:
        """Undo ``neutralize``."""
        return restore(text, self.patterns)

    def restore_json(self, text: str) -> str:
        """Undo ``neutralize`` in the strings of a JSON text."""
        return restore_json(text, self.patterns)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        documents: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Write messages and documents in the format of the model.

        A message has a ``role`` (system, user or assistant) and a ``content``; a user message may have an
        ``input``, the material that an instruction is about. A document has a ``text`` and, if any, a ``title``;
        its other keys are kept in the prompt's ``documents`` but not rendered.
        """
        self._check(messages, documents)
        texts = [text for item in (*messages, *documents) for text in item.values() if isinstance(text, str)]
        wrapper = ContentWrapper([self.source, *self.special_tokens.values(), *texts])
        wrapped_messages = [
            {"role": message["role"], **self._wrap(message, ("content", "input"), wrapper)} for message in messages
        ]
        message_count = wrapper.count
        wrapped_documents = [self._wrap(document, ("text",), wrapper) for document in documents]
        required_count = wrapper.count
        # A template may leave out titles, so they are numbered after everything that it must not leave out.
        wrapped_documents = [
            {**wrapped, **self._wrap(document, ("title",), wrapper)}
            for document, wrapped in zip(documents, wrapped_documents, strict=True)
        ]
        rendered = self._template.render(
            wrapped_messages,
            wrapped_documents,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
        )
        segments, seen = wrapper.split(rendered)
        self._check_seen(seen, message_count, required_count)
        return Prompt(
            segments=tuple(break_joints(segments, self.patterns)),
            messages=tuple(dict(message) for message in messages),
            documents=tuple(dict(document) for document in documents),
        )

    def difference(self, other: "ChatTemplate") -> Difference | None:
        """Return where another template first writes a conversation otherwise, each with its own special tokens.

        Conversations that the other template refuses, such as a system text for some, do not count, unless it
        refuses all of them.
        """
        refused = []
        for name, messages in CONVERSATIONS.items():
            ours = self._plain(messages)
            try:
                theirs = other._plain(messages)
            except TemplateError as error:
                refused.append(Difference(name, 0, ours, str(error)))
                continue
            if ours != theirs:
                pairs = zip(ours, theirs, strict=False)
                position = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
                return Difference(name, position, ours[position:], theirs[position:])
        return refused[0] if len(refused) == len(CONVERSATIONS) else None

    def _plain(self, messages: Sequence[Mapping[str, str]]) -> str:
        return self._template.render(messages, (), add_generation_prompt=True, special_tokens=self.special_tokens)

    def _check_seen(self, seen: set[int], message_count: int, required_count: int) -> None:
        """Refuse a prompt without one of the messages (numbered first) or one of the documents' texts."""
        if not seen.issuperset(range(message_count)):
            raise TemplateError(
                f"{self.name}: the template leaves out a message.",
                hint="Leave out that role or input, or use another template.",
            )
        if not seen.issuperset(range(message_count, required_count)):
            raise self._unused_documents()

    def _unused_documents(self) -> UnusedDocumentsError:
        return UnusedDocumentsError(
            f"{self.name}: the template does not use the documents it is given.",
            hint="Put their text into the user message, or use a template that has a place for documents.",
        )

    def _check(self, messages: Sequence[Mapping[str, str]], documents: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what no template can render faithfully."""
        if not messages:
            raise TemplateError("There are no messages.", hint="Give at least one user message.")
        for message in messages:
            if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise TemplateError(
                    f"{dict(message)!r} is not a message.",
                    hint=f"Give a role ({', '.join(ROLES)}) and a text content.",
                )
            extra = message.keys() - {"role", "content", "input"}
            if extra or not isinstance(message.get("input") or "", str):
                raise TemplateError(
                    f"A message cannot hold {sorted(extra) or message['input']!r}.",
                    hint="Give a message only a role, a content and an input, all of them text.",
                )
        for document in documents:
            if not isinstance(document.get("text"), str) or not isinstance(document.get("title") or "", str):
                raise TemplateError(
                    f"{dict(document)!r} is not a document.", hint="Give it a text, and a title if it has one."
                )
        if documents and not self._template.takes_documents:
            raise self._unused_documents()

    def _wrap(self, item: Mapping[str, Any], keys: tuple[str, ...], wrapper: ContentWrapper) -> dict[str, str]:
        """Neutralise and wrap the values of some keys of a message or a document."""
        return {key: wrapper.wrap(self.neutralize(item[key])) for key in keys if item.get(key) is not None}
