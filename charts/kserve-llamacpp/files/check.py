"""One check of `helm test`: health, models or chat, asked of the proxy until it is right.

    python check.py CHECK URL SECONDS MODEL

Without a MODEL behind the proxy ("-"), chat must be refused with a clear 503.
"""

import json
import ssl
import sys
import time
import urllib.error
import urllib.request


def main(check: str, url: str, seconds: float, model: str) -> int:
    """Ask again and again; the last answer is told."""
    deadline = time.monotonic() + seconds
    while True:
        is_right, told = CHECKS[check](url, model)
        if is_right or time.monotonic() > deadline:
            print(f"{check}: {'right' if is_right else 'WRONG'}: {told}")
            return 0 if is_right else 1
        time.sleep(1)


def health(url: str, model: str) -> tuple[bool, str]:
    """The proxy is alive, and wants requests."""
    live, _ = ask(f"{url}/health/live")
    ready, told = ask(f"{url}/health/ready")
    return (live, ready) == (200, 200), f"live {live}, ready {ready}: {told}"


def models(url: str, model: str) -> tuple[bool, str]:
    """The list of models is one, and has the release's model."""
    status, body = ask(f"{url}/v1/models")
    names = [entry.get("id") for entry in body.get("data", [])] if status == 200 else []
    is_listed = model in ("-", "*") or model in names
    return body.get("object") == "list" and is_listed, f"{status}: {names or body}"


def chat(url: str, model: str) -> tuple[bool, str]:
    """The model answers; without one, the refusal is an error of OpenAI's form."""
    if model == "*":
        _, listed = ask(f"{url}/v1/models")
        model = next((entry["id"] for entry in listed.get("data", [])), "none")
    question = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    status, body = ask(f"{url}/v1/chat/completions", question)
    if model == "-":
        error = body.get("error", {})
        is_clear = status == 503 and bool(error.get("message") and error.get("code"))
        return is_clear, f"{status}: {body}"
    return status == 200 and bool(body.get("choices")), f"{status}: {body}"


# Whether it works, not whom it trusts: the certificate has the name that clients know.
TLS = ssl._create_unverified_context()  # noqa: S323

CHECKS = {"health": health, "models": models, "chat": chat}


def ask(url: str, body: object = None) -> tuple[int, dict]:
    """Return status and JSON of the answer; status 0 and the reason where there is none."""
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, head)  # noqa: S310 - the chart gives the URL
    try:
        with urllib.request.urlopen(request, timeout=30, context=TLS) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return error.code, json.load(error)
            except ValueError:
                return error.code, {}
    except (OSError, ValueError) as error:
        return 0, {"error": {"message": str(error)}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]))
