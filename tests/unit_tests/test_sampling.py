import pytest

from lince_rag.engines.base import (
    DEFAULT_ANSWER_TOKENS,
    GenerationSettings,
    generation_options,
    is_beam_search,
    is_sampling,
)
from lince_rag.prompting.registry import get_model


def options(model: str, **settings: float) -> dict[str, object]:
    return generation_options(get_model(model), GenerationSettings(**settings))


@pytest.mark.parametrize(
    ("model", "sampling", "beams", "tokens"),
    [
        ("lince-zero", False, 4, 128),
        ("alpaca-lora-ptbr-7b", False, 4, 256),
        ("aira-2-portuguese-1b7", True, 1, 200),
        ("falcon-40b-instruct", True, 1, 200),
        ("llama-2-7b-spanish", False, 1, DEFAULT_ANSWER_TOKENS),
    ],
)
def test_nothing_asked_gives_the_cards_own(model: str, sampling: bool, beams: int, tokens: int) -> None:
    found = options(model)
    assert (is_sampling(found), found["num_beams"], found["max_new_tokens"]) == (sampling, beams, tokens)


@pytest.mark.parametrize("model", ["lince-zero", "aira-2-portuguese-1b7", "llama-2-7b-spanish"])
def test_temperature_zero_is_greedy(model: str) -> None:
    found = options(model, temperature=0)
    assert not is_sampling(found)
    assert not is_beam_search(found)
    assert not {"temperature", "top_p", "top_k", "early_stopping"} & found.keys()


def test_asking_for_sampling_ends_the_beam_search() -> None:
    found = options("lince-zero", temperature=0.5, top_p=0.9)
    assert is_sampling(found)
    assert not is_beam_search(found)
    assert (found["temperature"], found["top_p"]) == (0.5, 0.9)


def test_a_sampling_setting_joins_the_cards() -> None:
    found = options("aira-2-portuguese-1b7", temperature=0.3)
    assert (found["temperature"], found["top_k"], found["top_p"]) == (0.3, 50, 0.95)


def test_beams_end_the_sampling() -> None:
    found = options("aira-2-portuguese-1b7", num_beams=3)
    assert is_beam_search(found)
    assert not is_sampling(found)


def test_length_and_repetition() -> None:
    found = options("llama-2-7b-spanish", max_tokens=7, repetition_penalty=1.3)
    assert (found["max_new_tokens"], found["repetition_penalty"]) == (7, 1.3)
