"""The short answer: the stretch of a sentence that says it, where a question asks for a date, a number, a name."""

from lince_rag.text.language import Language
from lince_rag.text.questions import content_stems, function_words, kind_of
from lince_rag.text.sentences import split_sentences
from lince_rag.text.words import Word, words


def find_short_answer(question: str, answer: str, language: Language) -> str | None:
    """Find the stretch of an answer that says it in fewest words.

    Of the stretches that look like what is asked for (``prompts/questions.toml``) it is the one nearest to the
    words that the answer shares with the question. A number takes the word after it along, its unit, unless the
    question names it.

    Args:
        question: The question.
        answer: The answer.
        language: Their language.

    Returns:
        The stretch, verbatim; ``None`` where the question asks for something else, or there is no such stretch.
    """
    kind = kind_of(question, language)
    if kind is None:
        return None
    asked = list(words(question, language))
    content = content_stems(asked, language)
    said_before = {word.folded for word in asked}
    for sentence in split_sentences(answer, language):
        found = list(words(sentence.text, language))
        shared = [word for word in found if word.stem in content]
        for pattern in kind.spans:
            group = "span" if "span" in pattern.groupindex else 0
            matches = [
                match.span(group)
                for match in pattern.finditer(sentence.text)
                if _is_new(match[group], said_before, language)
            ]
            if matches:
                start, end = min(matches, key=lambda span: (_distance(span, shared), span))
                if kind.name == "number":
                    end = _with_unit(sentence.text, end, found, said_before, language)
                return sentence.text[start:end].strip(" ,")
    return None


def _is_new(text: str, said_before: set[str], language: Language) -> bool:
    """Tell whether a stretch says something that the question has not, beyond function words."""
    return any(
        word.folded not in said_before and word.folded not in function_words(language)
        for word in words(text, language)
    )


def _distance(span: tuple[int, int], shared: list[Word]) -> int:
    """Characters between a stretch and the nearest word that is in the question, too."""
    start, end = span
    gaps = (
        max(word.start - end, start - word.end, 0) for word in shared if word.end <= start or word.start >= end
    )
    return min(gaps, default=0)


def _with_unit(text: str, end: int, found: list[Word], said_before: set[str], language: Language) -> int:
    """Take the word after a number along, unless the question names it or it is no unit."""
    following = next((word for word in found if word.start >= end), None)
    if following is None or text[end : following.start].strip() or text[end : following.start] == "":
        return end
    ignored = following.folded in said_before or following.folded in function_words(language)
    return end if ignored or not following.text.isalpha() else following.end
