"""What LangChain wraps a chat model in (bound settings, fallbacks, fields to configure), and the model inside."""

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.language_models import BaseLanguageModel, BaseLLM
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

from lince_rag.errors import ConfigurationError
from lince_rag.index.filters import combine_filters
from lince_rag.index.retriever import HybridRetriever
from lince_rag.models.chat_model import ChatLince

AnyModel = Runnable[Any, Any]


def is_resolved(llm: AnyModel) -> bool:
    """Return whether a Runnable holds one model for certain: nothing to configure and no fallbacks."""
    return not isinstance(strip_bindings(llm), DynamicRunnable | RunnableWithFallbacks)


def resolve_model(
    llm: AnyModel, config: RunnableConfig, make: Callable[[AnyModel], Runnable[Any, Any]]
) -> Runnable[Any, Any]:
    """Resolve what ``config`` configures, and call ``make`` with each model that may be asked.

    A prompt is written for one model: its format and its window. So each fallback is all of what ``make`` returns
    for that model, not the model alone.
    """
    if isinstance(llm, DynamicRunnable):
        configured, _ = llm.prepare(config)
        own = llm.config
        return resolve_model(configured, config, lambda model: make(model.with_config(own) if own else model))
    if isinstance(llm, RunnableWithFallbacks):
        return RunnableWithFallbacks(
            runnable=resolve_model(llm.runnable, config, make),
            fallbacks=[resolve_model(fallback, config, make) for fallback in llm.fallbacks],
            exceptions_to_handle=llm.exceptions_to_handle,
        )
    if isinstance(llm, RunnableBindingBase):
        wrapper = llm
        return resolve_model(
            wrapper.bound,
            merge_configs(wrapper.config, config),
            lambda model: make(wrapper.model_copy(update={"bound": model})),
        )
    return make(llm)


def strip_bindings(llm: AnyModel) -> AnyModel:
    """Return what is inside bound settings, retries and the like."""
    while isinstance(llm, RunnableBindingBase):
        llm = llm.bound
    return llm


def unwrap(llm: AnyModel) -> AnyModel:
    """Return the model inside a resolved Runnable; a ``ChatLince`` gets the ``max_tokens`` bound to it."""
    bound: dict[str, Any] = {}
    while isinstance(llm, RunnableBindingBase):
        bound = {**llm.kwargs, **bound}
        llm = llm.bound
    if isinstance(llm, ChatLince) and bound.get("max_tokens"):
        # A copy shares an engine that exists already, not one that is made later.
        _ = llm.runtime
        return llm.model_copy(update={"max_tokens": bound["max_tokens"]})
    return llm


def inner_runnables(runnable: AnyModel, config: RunnableConfig) -> list[AnyModel]:
    """Return the models or retrievers inside a Runnable: the first that is tried, and its fallbacks."""
    if isinstance(runnable, DynamicRunnable):
        return inner_runnables(runnable.prepare(config)[0], config)
    if isinstance(runnable, RunnableWithFallbacks):
        return [found for each in runnable.runnables for found in inner_runnables(each, config)]
    if isinstance(runnable, RunnableBindingBase):
        return inner_runnables(runnable.bound, config)
    return [runnable]


def narrow_retriever(retriever: AnyModel, given: Mapping[str, Any] | None, k: int | None) -> AnyModel:
    """Return a retriever that finds only what also passes a filter; what it is wrapped in stays.

    Args:
        retriever: The retriever of an ``Index``, or a Runnable with nothing but such retrievers inside.
        given: The filter; ``None`` leaves out nothing.
        k: Number of chunks; ``None`` keeps that of each retriever.

    Raises:
        ConfigurationError: One of the retrievers is not that of an ``Index``.
    """

    def narrow(inner: AnyModel) -> AnyModel:
        return narrow_retriever(inner, given, k)

    if isinstance(retriever, HybridRetriever):
        changes = {"filter": combine_filters([retriever.filter, given]), "k": k or retriever.k}
        return retriever.model_copy(update=changes)
    if isinstance(retriever, RunnableBindingBase):
        kwargs = dict(retriever.kwargs)
        # What is bound takes the place of the retriever's own.
        if kwargs.get("filter") is not None:
            kwargs["filter"] = combine_filters([kwargs["filter"], given])
        if k is not None:
            kwargs.pop("k", None)
        return retriever.model_copy(update={"bound": narrow(retriever.bound), "kwargs": kwargs})
    if isinstance(retriever, RunnableWithFallbacks):
        inner = {"runnable": narrow(retriever.runnable), "fallbacks": [*map(narrow, retriever.fallbacks)]}
        return retriever.model_copy(update=inner)
    if isinstance(retriever, RunnableConfigurableAlternatives):
        others = {
            name: narrow(other) if isinstance(other, Runnable) else lambda make=other: narrow(make())
            for name, other in retriever.alternatives.items()
        }
        return retriever.model_copy(update={"default": narrow(retriever.default), "alternatives": others})
    if isinstance(retriever, DynamicRunnable):
        return retriever.model_copy(update={"default": narrow(retriever.default)})
    raise ConfigurationError(
        f"{type(retriever).__name__} takes no metadata filter.",
        hint="Use the retriever of Index.as_retriever.",
    )


def check_model(llm: AnyModel) -> None:
    """Raise the error of what is no chat model, of an unknown model or of a missing engine at once.

    Otherwise it would come with the first question.
    """
    llm = strip_bindings(llm)
    if not isinstance(llm, Runnable) or isinstance(llm, BaseRetriever | BaseLLM):
        raise ConfigurationError(
            f"llm is {llm!r:.80}, which is not a chat model.",
            hint="Give a ChatLince, or another LangChain chat model, before the retriever.",
        )
    if isinstance(llm, ChatLince):
        llm.check()


def check_retriever(retriever: RetrieverLike) -> None:
    """Raise the error of what is no retriever at once."""
    inner = strip_bindings(retriever)
    if not isinstance(inner, Runnable) or isinstance(inner, BaseLanguageModel):
        raise ConfigurationError(
            f"retriever is {inner!r:.80}, which is not a retriever.",
            hint="Give what as_retriever() of an Index or of a vector store returns.",
        )
