"""What LangChain wraps a chat model in (bound settings, fallbacks, fields to configure), and the model inside."""

from collections.abc import Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable

from lince_rag.models.chat_model import ChatLince

AnyModel = Runnable[Any, Any]


def is_settled(llm: AnyModel) -> bool:
    """Tell whether it is certain which model is in a Runnable.

    Args:
        llm: A chat model, or one in wrappers.

    Returns:
        Whether there is nothing to configure and nothing to fall back to; bound settings do not matter.
    """
    while isinstance(llm, RunnableBindingBase):
        llm = llm.bound
    return not isinstance(llm, DynamicRunnable | RunnableWithFallbacks)


def settle(
    llm: AnyModel, config: RunnableConfig, make: Callable[[AnyModel], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """Make something for each of the models that a Runnable may turn out to be.

    A prompt is written for one model: its format, its window. So what falls back is all that is made for a
    model, not only the model.

    Args:
        llm: A chat model, or one in wrappers.
        config: Decides about what can be configured.
        make: Makes it for one settled model.

    Returns:
        What was made; with fallbacks where the model has some.
    """
    if isinstance(llm, DynamicRunnable):
        configured, _ = llm.prepare(config)
        own = llm.config
        return settle(configured, config, lambda model: make(model.with_config(own) if own else model))
    if isinstance(llm, RunnableWithFallbacks):
        return RunnableWithFallbacks(
            runnable=settle(llm.runnable, config, make),
            fallbacks=[settle(fallback, config, make) for fallback in llm.fallbacks],
            exceptions_to_handle=llm.exceptions_to_handle,
        )
    if isinstance(llm, RunnableBindingBase):
        wrapper = llm
        return settle(
            wrapper.bound,
            merge_configs(wrapper.config, config),
            lambda model: make(wrapper.model_copy(update={"bound": model})),
        )
    return make(llm)


def unwrap(llm: AnyModel) -> AnyModel:
    """Find the model whose window and format count.

    Args:
        llm: A settled chat model.

    Returns:
        The model without what is bound to it; a ``ChatLince`` with the bound length of an answer.
    """
    bound: dict[str, Any] = {}
    while isinstance(llm, RunnableBindingBase):
        bound = {**llm.kwargs, **bound}
        llm = llm.bound
    if isinstance(llm, ChatLince) and bound.get("max_tokens"):
        # A copy shares the engine that there is, not one to come.
        _ = llm.engine
        return llm.model_copy(update={"max_tokens": bound["max_tokens"]})
    return llm


def innermost(runnable: AnyModel, config: RunnableConfig) -> list[AnyModel]:
    """Find what does the work in wrappers.

    Args:
        runnable: A chat model or a retriever, or one in wrappers.
        config: Decides about what can be configured.

    Returns:
        The first that is tried, and its fallbacks.
    """
    if isinstance(runnable, DynamicRunnable):
        return innermost(runnable.prepare(config)[0], config)
    if isinstance(runnable, RunnableWithFallbacks):
        return [found for each in runnable.runnables for found in innermost(each, config)]
    if isinstance(runnable, RunnableBindingBase):
        return innermost(runnable.bound, config)
    return [runnable]


def check_model(llm: AnyModel) -> None:
    """Look a settled ``ChatLince`` up: a wrong name is an error now, not at the first question.

    Args:
        llm: A chat model, or one in wrappers.

    Raises:
        UnknownModelError: There is no model of that name.
        EngineError: There is no engine to run it.
    """
    while isinstance(llm, RunnableBindingBase):
        llm = llm.bound
    if isinstance(llm, ChatLince):
        llm.check()
