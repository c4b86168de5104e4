"""Models: the LangChain chat model and text model over the engines, tool calls and structured output."""
