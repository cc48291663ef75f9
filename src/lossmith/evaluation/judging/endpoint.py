"""One request to an OpenAI-compatible endpoint, through the official client, and what its answer means."""

import email.utils
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lossmith._extras import require
from lossmith.errors import ConfigurationError
from lossmith.evaluation.judging.addresses import KEY_VARIABLES, is_local, key_of_environment
from lossmith.evaluation.judging.calls import JudgeCall, Reply, TokenChoice

MOST_BYTES = 16 * 2**20
"""A longer answer of the endpoint is no reply."""

SHORTEST_KEY = 8
"""A shorter key guards nothing (servers that want none take any word), and its letters may be part of a reply."""

_LASTING = ("insufficient_quota", "billing_not_active")
_ONE_CALL = ("context_length_exceeded", "content_filter", "content_policy_violation", "string_above_max_length")
_PASSING_STATUS = (408, 409, 425, 429)
_NAMES_OF_SETTINGS = (("max_tokens",) * 2, ("logprobs",) * 2, ("response_format", "json_schema"))

MOST_ADAPTATIONS = len(_NAMES_OF_SETTINGS)
"""So many settings can be put otherwise where an endpoint refuses them."""


class Refused(Exception):
    """The endpoint refuses every call, and would refuse again: asking must stop. Carries the sentence."""


class CallRefused(Exception):
    """The endpoint refuses this one call, for its length or its contents."""


class Adapted(Exception):
    """The endpoint refused a setting, which is put otherwise from now on: the same call may be sent again at once."""


class Passing(Exception):
    """Something that may pass: a time-out, a full server, a broken answer."""

    def __init__(self, what: str, *, wait_s: float | None = None, maybe_paid: bool = True, full: bool = False):
        super().__init__(what)
        self.wait_s = wait_s
        """How long the endpoint asks to wait, if it says."""
        self.maybe_paid = maybe_paid
        """Whether the endpoint may have worked for it."""
        self.full = full
        """Whether the endpoint asks all of us to slow down."""


class Endpoint:
    """An address that answers chat completions. One object serves any number of threads, and is closed by `with`.

    The key comes from the environment alone (`LOSSMITH_JUDGE_API_KEY`, else `OPENAI_API_KEY`); a local address needs
    none. It is sent to the address, over https unless that is local, and goes nowhere else: no file, no message, no
    log holds it.

    Args:
        base_url: Address up to and with `/v1`, as `http://127.0.0.1:8000/v1`.
        timeout_s: Seconds until a request that has not been answered whole is given up, > 0.
        key_variables: Where the key is looked for in the environment, in order.
        purpose: What it is asked for, where `openai` is missing.
        extra: The extra that installs it.

    Raises:
        ConfigurationError: For an address that cannot be used, no key for one that is not local, or a key for one that
            is neither local nor https.
        MissingExtraError: If `openai` is not installed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 120.0,
        key_variables: tuple[str, ...] = KEY_VARIABLES,
        purpose: str = "ask a judge",
        extra: str = "judge",
    ):
        if not timeout_s > 0:
            raise ConfigurationError(f"`timeout` must be > 0 seconds, got {timeout_s}.")
        self.base_url, self.timeout_s = base_url, timeout_s
        local = is_local(base_url)
        self._key_variables = key_variables
        self._key = key_of_environment(base_url, key_variables, local=local)
        self._openai: Any = require("openai", extra=extra, purpose=purpose)
        self._broken = transport_errors(self._openai.DefaultHttpxClient)
        # Proxies of the environment are for the network, not for this machine.
        transport = self._openai.DefaultHttpxClient(trust_env=not local)
        self._client = self._openai.OpenAI(
            base_url=base_url, api_key=self._key or "none", timeout=timeout_s, max_retries=0, http_client=transport
        )
        self._left_out: dict[str, str | None] = {}
        self.notices: list[str] = []
        """What had to be asked otherwise than it was meant."""
        self._lock = threading.Lock()
        self._under_way, self._closed = 0, False

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more requests, and close the connections; with requests under way, when the last of them has ended.

        Closed beneath a thread that is just connecting, the client would not know of that connection and leave it open.
        """
        with self._lock:
            self._closed = True
            free = not self._under_way
        if free:
            self._client.close()

    def send(self, call: JudgeCall) -> Reply:
        """Ask once.

        Raises:
            Passing: If asking again may help.
            Adapted: If asking again will help, since a setting is put otherwise then.
            CallRefused: If the endpoint refuses this call.
            Refused: If it refuses all of them, or was closed.
        """
        try:
            with self._open():
                return self._send(self._body(call))
        except _Unsupported as error:
            self._adapt(error)
            raise Adapted(str(error)) from None

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Inside, the client stays open; the last request of a closed endpoint closes it."""
        with self._lock:
            if self._closed:
                raise Refused("The endpoint was closed.")
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                last = self._closed and not self._under_way
            if last:
                self._client.close()

    def _send(self, body: dict[str, Any]) -> Reply:
        began = time.monotonic()
        try:
            with self._client.chat.completions.with_streaming_response.create(**body) as answer:
                content = bytearray()
                for part in answer.iter_bytes():
                    content += part
                    # A server that drips would never meet the time-out of a single read.
                    if time.monotonic() - began > self.timeout_s:
                        raise Passing(f"no whole answer within {self.timeout_s:g} s")
                    if len(content) > MOST_BYTES:
                        raise Passing(f"an answer of more than {MOST_BYTES // 2**20} MiB")
        except self._openai.APITimeoutError:
            raise Passing(f"no answer within {self.timeout_s:g} s") from None
        except self._openai.APIStatusError as error:
            # Without its chain: the client's exceptions hold the request, and that the key.
            raise self._meaning(error, body) from None
        except self._openai.APIConnectionError as error:
            raise self._lost(error.__cause__ or error) from None
        except self._openai.OpenAIError as error:
            raise Passing(self._safe(f"an answer that the client cannot read ({error})")) from None
        except self._broken as error:
            # Errors of the transport while the answer is read are not wrapped by the client.
            raise self._lost(error) from None
        return self._keyless(read_reply(bytes(content)))

    def _keyless(self, reply: Reply) -> Reply:
        """The reply without the key, which a proxy or a server that shows its requests may echo: replies are stored."""
        if len(self._key) < SHORTEST_KEY:
            return reply
        # As it is, and as JSON within the text may write it.
        forms = {self._key, json.dumps(self._key)[1:-1], self._key.replace("/", "\\/")}
        text, finish = reply.text, reply.finish
        for form in forms:
            text, finish = text.replace(form, "[key]"), finish.replace(form, "[key]")
        words = ["".join(token.text for token in reply.tokens)]
        words += [word for token in reply.tokens for word, _ in token.alternatives]
        echoed = any(form in word for form in forms for word in words)
        return replace(reply, text=text, finish=finish, tokens=() if echoed else reply.tokens)

    def _lost(self, error: BaseException) -> Passing:
        name = type(error).__name__
        if "Timeout" in name:
            return Passing(f"no answer within {self.timeout_s:g} s")
        refused = name == "ConnectError"
        what = "no connection" if refused else "the connection broke"
        return Passing(self._safe(f"{what} ({str(error) or name})"), maybe_paid=not refused)

    def _meaning(self, error: Any, body: dict[str, Any]) -> Exception:
        status = int(error.status_code)
        details = error.body if isinstance(error.body, dict) else {}
        code = str(details.get("code") or details.get("type") or "")
        said = self._safe(str(details.get("message") or error.response.reason_phrase or ""))
        lasting = code in _LASTING
        if (status >= 500 or status in _PASSING_STATUS) and not lasting:
            wait_s = retry_after(error.response.headers)
            full = status in (429, 503)
            # A gateway's error says nothing of what the model behind it has written.
            return Passing(f"status {status}", wait_s=wait_s, maybe_paid=status >= 500 and not full, full=full)
        if status in (401, 403):
            key = f"Its key was read from {' or '.join(self._key_variables)}." if self._key else "No key was sent."
            return Refused(f"The endpoint refuses the key (status {status}). {key}")
        if status in (400, 413) and (code in _ONE_CALL or "context length" in said.lower()):
            return CallRefused(f"status {status}: {said}")
        if status in (400, 422):
            for name, word in _NAMES_OF_SETTINGS:
                # Whether it is left out by now does not matter: other threads may have sent theirs before.
                if name in body and (name in said or word in said):
                    return _Unsupported(name, said)
        return Refused(f"The endpoint refuses the request with status {status}: {said or 'without a reason'}.")

    def _safe(self, text: str) -> str:
        """Foreign text for a message: short, and without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return f"{text[:200]}..." if len(text) > 200 else text.rstrip(".")

    def _body(self, call: JudgeCall) -> dict[str, Any]:
        sampling = call.sampling
        body: dict[str, Any] = {
            "model": call.model,
            "messages": [{"role": role, "content": content} for role, content in call.messages],
            "max_tokens": sampling.max_tokens,
        }
        if sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        if sampling.seed is not None:
            body["seed"] = sampling.seed + call.repeat
        if sampling.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        if call.schema:
            schema = {"name": "reply", "strict": True, "schema": json.loads(call.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        with self._lock:
            left_out = dict(self._left_out)
        for name, other in left_out.items():
            value = body.pop(name, None)
            if other is not None and value is not None:
                body[other] = value
            if name == "logprobs":
                body.pop("top_logprobs", None)
        return body

    def _adapt(self, error: "_Unsupported") -> None:
        """Newer models count their hidden tokens and want another name; some give no log-probabilities."""
        with self._lock:
            if error.name in self._left_out:
                return
            self._left_out[error.name] = "max_completion_tokens" if error.name == "max_tokens" else None
        if error.name == "logprobs":
            self.notices.append("The endpoint gives no log-probabilities: the verdicts themselves are counted.")
        if error.name == "response_format":
            self.notices.append("The endpoint forces no JSON schema: replies are read as they come.")


class _Unsupported(Exception):
    """A setting that the endpoint does not know."""

    def __init__(self, name: str, said: str):
        super().__init__(said)
        self.name = name


def transport_errors(client: type) -> tuple[type[Exception], ...]:
    """What reading an answer raises where the network fails.

    Args:
        client: The transport of the official client: of `httpx`, or of `httpx2` in its newer versions.
    """
    name = next(base.__module__.split(".")[0] for base in client.__mro__ if base.__module__.startswith("httpx"))
    return sys.modules[name].HTTPError, OSError


def retry_after(headers: Any) -> float | None:
    """Seconds that an endpoint asks to wait, >= 0, from `retry-after-ms` or `Retry-After` (seconds or a date)."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if seconds == seconds else None


def read_reply(content: bytes) -> Reply:
    """The reply in the body of an answer.

    Raises:
        Passing: If it is no chat completion with a text.
    """
    try:
        values = json.loads(content)
        choice = values["choices"][0]
        message = choice["message"]
        text = message["content"]
        finish = choice.get("finish_reason") or "stop"
        if text is None and isinstance(message.get("refusal"), str):
            # The model declines in the field that is meant for it: a reply without an answer, and so it would again.
            text, finish = "", "refusal"
        usage = values.get("usage") or {}
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        tokens = _tokens(choice.get("logprobs"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Passing(f"an answer that is no chat completion ({len(content):,} bytes)") from None
    # A model that spent all its tokens on thinking writes none, and will again: that is a reply without a verdict.
    if text is None and finish == "length":
        text = ""
    if not isinstance(text, str) or not isinstance(finish, str):
        raise Passing("an answer without a text")
    return Reply(
        text=text,
        finish=finish,
        prompt_tokens=max(0, read),
        reply_tokens=max(0, written),
        counted=read > 0,
        tokens=tokens,
    )


def _tokens(logprobs: Any) -> tuple[TokenChoice, ...]:
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("content"), list):
        return ()
    return tuple(
        TokenChoice(
            text=str(entry["token"]),
            alternatives=tuple((str(other["token"]), float(other["logprob"])) for other in entry["top_logprobs"]),
        )
        for entry in logprobs["content"]
    )
