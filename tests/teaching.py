"""Teaching a tiny checkpoint what to say to some prompts, so that a test can see a model that decides."""

from collections.abc import Sequence

import torch

from lince_rag import ChatLince

MOST_STEPS = 600


def teach(chat: ChatLince, examples: Sequence[tuple[list[int], str]]) -> None:
    """Train the model of a chat, in place, until it answers each prompt with its text and ends there.

    Args:
        chat: A chat over a tiny checkpoint.
        examples: The token ids of prompts, as ``ChatLince.encode`` gives them, and their answers.
    """
    model, tokenizer = chat.runtime.loaded.model, chat.runtime.tokenizer  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(MOST_STEPS):
        losses = []
        for prompt, text in examples:
            answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            ids = torch.tensor([[*prompt, *answer]])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            losses.append(model(input_ids=ids, labels=labels).loss)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if max(losses).item() < 0.01:
            break
    model.eval()
