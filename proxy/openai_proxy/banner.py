"""What is printed when the server is ready: where it is, and lines to paste."""

from __future__ import annotations

import json

ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  # compared with, not bound to


def banner(host: str, port: int, model: str, scheme: str = "http") -> str:
    """Return the text; a listening address that means any is shown as localhost."""
    shown = "localhost" if host in ANY_ADDRESS else host
    shown = f"[{shown}]" if ":" in shown else shown
    base_url = f"{scheme}://{shown}:{port}/v1"
    messages = [{"role": "user", "content": "Say hello in one sentence."}]
    body = json.dumps({"model": model, "messages": messages}).replace("'", "'\\''")
    return f"""
Ready: {model} at {base_url}

  curl {base_url}/chat/completions -H 'Content-Type: application/json' -d '{body}'

  from openai import OpenAI
  client = OpenAI(base_url={base_url!r}, api_key="unused")
  print(client.chat.completions.create(model={model!r}, messages={messages!r})\
.choices[0].message.content)
"""
