"""Asking: retries, budget, store, concurrency, kill and resume, against a scripted server."""

import email.utils
import gc
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

import judge_server as scripted
from lossmith.errors import ConfigurationError, EvidenceError, JudgeError, MissingExtraError
from lossmith.evaluation.judging import Backoff, Budget, CallCache, Endpoint, JudgeCall, Reply, Sampling, ask
from lossmith.evaluation.judging.asking import FAILURES_IN_A_ROW
from lossmith.evaluation.judging.endpoint import Refused, retry_after

KEY = "sk-very-secret-key-0123456789"
FAST = Backoff(tries=4, first_s=0.01, longest_s=0.05)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("LOSSMITH_JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with scripted.judge_server(lambda body: f"Rating: [[{len(body['messages'][-1]['content']) % 10 + 1}]]") as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    with CallCache(tmp_path / "replies.sqlite") as opened:
        yield opened


def calls(count: int, **sampling) -> list[JudgeCall]:
    return [
        JudgeCall(
            model="judge",
            messages=(("user", f"question {n}"),),
            prompt="p1",
            sampling=Sampling(max_tokens=50, **sampling),
        )
        for n in range(count)
    ]


def asked(server, cache, count=1, *, timeout_s=5.0, backoff=FAST, **settings):
    with Endpoint(server.base_url, timeout_s=timeout_s) as endpoint:
        return ask(calls(count), endpoint=endpoint, cache=cache, backoff=backoff, **settings)


def only(result) -> Reply:
    (outcome,) = result.outcomes.values()
    assert outcome.reply is not None, outcome.problem
    return outcome.reply


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, scripted.error("oops")),
        (503, {}, b"<html>no JSON</html>"),
        (429, {}, scripted.error("slow down")),
        (408, {}, scripted.error("late")),
        scripted.close,
        scripted.truncate,
        scripted.garbage,
        (200, {}, b"not json [[9]]"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": {"content": None}}]}),
        (200, {}, b"[" * 100_000),
        scripted.hang(2.0),
        scripted.drip(6.0),
    ],
    ids=[
        "500",
        "503",
        "429",
        "408",
        "closed",
        "truncated",
        "garbage",
        "no-json",
        "no-choice",
        "no-text",
        "nested",
        "hangs",
        "drips",
    ],
)
def test_what_may_pass_is_tried_again_and_never_stored(server, cache, fault):
    server.script = [fault]
    result = asked(server, cache, timeout_s=1.2)
    assert only(result).text == "Rating: [[1]]"
    assert len(server.bodies) == result.sent == 2
    # Given up at the time-out, not when the server has had enough.
    assert server.at[1] - server.at[0] < 4


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "0.4"}, {"retry-after-ms": "400"}], ids=["Retry-After", "retry-after-ms"]
)
def test_retry_after_is_honoured(server, cache, headers):
    server.script = [(429, headers, scripted.error("slow down"))]
    only(asked(server, cache))
    assert 0.4 <= server.at[1] - server.at[0] < 2


def test_retry_after_reads_seconds_milliseconds_and_dates():
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": date}) == pytest.approx(90, abs=3)
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "-5"}) == 0


def test_a_full_server_is_left_alone_by_all_threads(server, cache):
    server.script = [(429, {"Retry-After": "1.0"}, scripted.error("slow down"))]
    server.latency_s = 0.05
    asked(server, cache, 60, concurrency=2)
    since = [at - server.at[0] for at in server.at]
    assert len(since) == 61
    assert not [seconds for seconds in since if 0.5 < seconds < 1.0]


def test_waits_grow_with_jitter_and_have_an_end():
    backoff = Backoff(first_s=1, longest_s=10)
    assert [backoff.wait_s(n, None, 0.0) for n in (1, 2, 3, 9)] == [0.5, 1, 2, 5]
    assert backoff.wait_s(9, None, 0.999) == pytest.approx(10, abs=0.01)
    assert backoff.wait_s(1, 30, 0.5) >= 30


def test_an_endpoint_that_asks_to_wait_too_long_is_not_waited_for(server, cache):
    server.script = [(429, {"Retry-After": "4000"}, scripted.error("tomorrow"))]
    with pytest.raises(JudgeError, match=r"asks to wait 4,000 s .*the same command continues"):
        asked(server, cache)


def test_tries_have_an_end_and_other_calls_go_on(server, cache):
    server.script = [(500, {}, scripted.error("oops"))] * 4
    result = asked(server, cache, 3, concurrency=1)
    failed = [outcome for outcome in result.outcomes.values() if outcome.reply is None]
    assert [outcome.problem for outcome in failed] == ["status 500 after 4 tries"]
    assert sum(outcome.reply is not None for outcome in result.outcomes.values()) == 2
    assert len(server.bodies) == 4 + 2


def test_a_dead_endpoint_ends_the_asking_with_one_sentence(server, cache):
    server.script = [(500, {}, scripted.error("oops"))] * 1000
    with pytest.raises(JudgeError, match=rf"failed {FAILURES_IN_A_ROW} calls in a row, the last one with status 500"):
        asked(server, cache, 50, concurrency=2)
    # No more than what was under way beside the failures.
    assert len(server.bodies) <= (FAILURES_IN_A_ROW + 2) * 4


def test_nobody_at_the_address(cache):
    with (
        Endpoint("http://127.0.0.1:9/v1") as endpoint,
        pytest.raises(JudgeError, match="failed 5 calls in a row, the last one with no connection"),
    ):
        ask(calls(8), endpoint=endpoint, cache=cache, backoff=Backoff(tries=1))


@pytest.mark.parametrize("status", [400, 404, 405, 422])
def test_a_refusal_for_good_stops_with_one_sentence_and_keeps_what_there_is(server, cache, status):
    server.script = [None, None, (status, {}, scripted.error("no such model"))]
    with pytest.raises(JudgeError, match=rf"status {status}: no such model\. What was replied is stored"):
        asked(server, cache, 5, concurrency=1)
    assert len(cache.get_many(call.key for call in calls(5))) == 2
    assert len(server.bodies) == 3


def test_no_money_is_not_waited_for(server, cache):
    server.script = [(429, {}, scripted.error("You exceeded your current quota", "insufficient_quota"))]
    with pytest.raises(JudgeError, match="status 429: You exceeded your current quota"):
        asked(server, cache)


def test_one_call_that_is_too_long_does_not_end_the_others(server, cache):
    server.script = [(400, {}, scripted.error("This model's maximum context length is 10", "context_length_exceeded"))]
    result = asked(server, cache, 3, concurrency=1)
    problems = [outcome.problem for outcome in result.outcomes.values() if outcome.reply is None]
    assert len(problems) == 1
    assert "maximum context length" in problems[0]
    assert len(server.bodies) == 3


def test_refusals_of_single_calls_do_not_end_the_asking(server, cache):
    refused = (400, {}, scripted.error("The prompt is longer than the context length"))
    server.script = [refused] * (FAILURES_IN_A_ROW + 1)
    result = asked(server, cache, 20, concurrency=1)
    assert [outcome.refused for outcome in result.outcomes.values()] == [True] * 6 + [False] * 14
    assert [outcome.reply is None for outcome in result.outcomes.values()] == [True] * 6 + [False] * 14
    assert result.stopped == ""


def test_refusals_of_single_calls_do_not_hide_a_dead_endpoint(server, cache):
    refused, dead = (400, {}, scripted.error("filtered", "content_filter")), (500, {}, scripted.error("oops"))
    server.script = [dead, refused] * 20
    with pytest.raises(JudgeError, match=f"failed {FAILURES_IN_A_ROW} calls in a row, the last one with status 500"):
        asked(server, cache, 20, concurrency=1, backoff=Backoff(tries=1))
    # One more may have been under way when the last of them failed.
    assert len(server.bodies) - 2 * FAILURES_IN_A_ROW in (-1, 0)


def test_models_that_want_other_settings_get_them(server, cache):
    server.script = [
        (400, {}, scripted.error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")),
        (400, {}, scripted.error("logprobs are not supported")),
    ]
    with Endpoint(server.base_url) as endpoint:
        result = ask(calls(1, top_logprobs=5), endpoint=endpoint, cache=cache, backoff=FAST)
        assert endpoint.notices == ["The endpoint gives no log-probabilities: the verdicts themselves are counted."]
    only(result)
    assert server.bodies[0]["max_tokens"] == 50
    assert server.bodies[0]["top_logprobs"] == 5
    assert server.bodies[2]["max_completion_tokens"] == 50
    assert not {"max_tokens", "logprobs", "top_logprobs"} & set(server.bodies[2])
    assert result.sent == 3


def test_a_budget_of_calls_counts_what_was_sent_to_learn_the_settings(server, cache):
    server.script = [(400, {}, scripted.error("'max_tokens' is unsupported"))]
    result = asked(server, cache, 2, budget=Budget(max_calls=1), concurrency=1)
    assert len(server.bodies) == result.sent == 1
    assert result.stopped == "the budget of 1 calls is used up"
    assert result.outcomes == {}
    assert result.tokens == 0


def test_an_endpoint_that_refuses_every_way_is_not_asked_for_ever(server, cache):
    server.script = [(400, {}, scripted.error("max_tokens, logprobs and max_completion_tokens are unsupported"))] * 9
    with pytest.raises(JudgeError, match="refuses the request with status 400"), Endpoint(server.base_url) as endpoint:
        ask(calls(1, top_logprobs=5), endpoint=endpoint, cache=cache, backoff=FAST)
    assert len(server.bodies) == 3


def test_calls_under_way_at_once_all_get_the_other_settings(cache):
    met = threading.Barrier(8, timeout=10)

    def refuse(said: str):
        def fault(handler) -> None:
            met.wait()
            handler.send(400, {}, scripted.error(said))

        return fault

    with scripted.judge_server(lambda body: "Rating: [[5]]") as server, Endpoint(server.base_url) as endpoint:
        server.script = [refuse("'max_tokens' is unsupported")] * 8 + [refuse("logprobs are not supported")] * 8
        result = ask(calls(8, top_logprobs=5), endpoint=endpoint, cache=cache, backoff=FAST, concurrency=8)
        notices = endpoint.notices
    assert [outcome.reply.text for outcome in result.outcomes.values()] == ["Rating: [[5]]"] * 8
    assert notices == ["The endpoint gives no log-probabilities: the verdicts themselves are counted."]
    assert all("max_completion_tokens" in body and "logprobs" not in body for body in server.bodies[16:])


def test_replies_are_stored_by_content_whatever_the_address(server, cache):
    first = only(asked(server, cache))
    with scripted.judge_server(lambda body: "Rating: [[9]]") as other:
        result = asked(other, cache)
        assert only(result) == first
        assert other.bodies == []
    assert result.sent == 0


def test_everything_that_makes_a_call_is_in_its_key():
    base = {"model": "m", "messages": (("user", "q"),), "prompt": "p", "repeat": 0, "sampling": Sampling()}
    changes = [
        {"model": "n"}, {"messages": (("user", "q "),)}, {"messages": (("system", "q"),)}, {"prompt": "p2"},
        {"repeat": 1}, {"sampling": Sampling(temperature=0.5)}, {"sampling": Sampling(temperature=None)},
        {"sampling": Sampling(max_tokens=9)}, {"sampling": Sampling(seed=1)}, {"sampling": Sampling(top_logprobs=1)},
        {"messages": (("user", "q"), ("user", ""))},
    ]  # fmt: skip
    keys = [JudgeCall(**{**base, **change}).key for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    assert JudgeCall(**base).key == keys[0]


def test_equal_calls_are_asked_once(server, cache):
    with Endpoint(server.base_url) as endpoint:
        result = ask(calls(2) * 3, endpoint=endpoint, cache=cache)
    assert len(server.bodies) == len(result.outcomes) == 2


def test_a_reply_keeps_its_tokens_in_the_store(cache):
    tokens = [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}]}]
    with scripted.judge_server(lambda body: scripted.completion("A", logprobs={"content": tokens})) as server:
        reply = only(asked(server, cache))
    assert reply.tokens[0].alternatives == (("A", -0.1),)
    assert cache.get(calls(1)[0].key) == reply


def test_concurrency_is_used_and_never_exceeded(cache):
    with scripted.judge_server(lambda body: "Rating: [[5]]", latency_s=0.03) as server:
        asked(server, cache, 40, concurrency=5)
        assert server.most_running == 5
        assert len(server.bodies) == 40


def test_a_budget_of_calls_counts_tries_and_stops_cleanly(server, cache):
    server.script = [(500, {}, scripted.error("oops"))]
    budget = Budget(max_calls=7)
    result = asked(server, cache, 20, budget=budget, concurrency=3)
    assert len(server.bodies) == budget.calls == result.sent == 7
    assert result.stopped == "the budget of 7 calls is used up"
    assert len(cache.get_many(call.key for call in calls(20))) == 6
    again = asked(server, cache, 20)
    assert again.stopped == ""
    assert len(server.bodies) == 7 + 14


def test_a_budget_of_tokens_is_never_exceeded(server, cache):
    most = calls(1)[0].most_tokens
    assert most > 50 + len("question 0")
    budget = Budget(max_tokens=5 * 120 + most)
    result = asked(server, cache, 20, budget=budget, concurrency=4)
    assert budget.tokens == result.tokens == 120 * len(server.bodies) <= budget.max_tokens
    # Nearly all of it is used: what is set aside for calls under way comes back.
    assert budget.tokens + most > budget.max_tokens
    assert "tokens has" in result.stopped


def test_an_endpoint_that_counts_nothing_is_charged_the_most(cache):
    with scripted.judge_server(lambda body: scripted.completion("Rating: [[5]]", usage=False)) as server:
        result = asked(server, cache)
    assert result.tokens == calls(1)[0].most_tokens


@pytest.mark.parametrize(
    ("fault", "charged"),
    [
        (scripted.truncate, True),
        *(((status, {}, scripted.error("oops")), status in (500, 502, 504)) for status in (429, 500, 502, 503, 504)),
    ],
    ids=["truncated", "429", "500", "502", "503", "504"],
)
def test_a_call_that_may_have_been_worked_on_is_charged(server, cache, fault, charged):
    server.script = [fault]
    assert asked(server, cache).tokens == 120 + charged * calls(1)[0].most_tokens


def test_a_mistake_of_ours_is_no_broken_connection(server, cache, monkeypatch):
    monkeypatch.setattr(Endpoint, "_body", lambda self, call: {"no_such_setting": 1})
    with pytest.raises(TypeError):
        asked(server, cache)
    assert server.bodies == []


def test_budget_and_settings_out_of_range():
    for make in (
        lambda: Budget(max_calls=0),
        lambda: Budget(max_tokens=-1),
        lambda: Backoff(tries=0),
        lambda: Sampling(temperature=3),
        lambda: Sampling(max_tokens=0),
        lambda: Endpoint("http://127.0.0.1:1/v1", timeout_s=0),
    ):
        with pytest.raises(ConfigurationError, match="must be"):
            make()


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_asking import FAST, calls
from lossmith.evaluation.judging import CallCache, Endpoint, ask
from pathlib import Path
with CallCache(Path({path!r})) as cache:
    with Endpoint({url!r}) as endpoint:
        ask(calls(60), endpoint=endpoint, cache=cache, concurrency=4, backoff=FAST)
"""


@pytest.mark.parametrize("after", [23])
def test_a_kill_costs_only_the_calls_under_way(tmp_path, after):
    path = tmp_path / "replies.sqlite"
    with scripted.judge_server(lambda body: "Rating: [[5]]", latency_s=0.05) as server:
        here = os.path.dirname(__file__)
        code = KILLED.format(tests=here, path=str(path), url=server.base_url)
        paths = os.pathsep.join([os.path.dirname(os.path.dirname(here)), *sys.path])
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
        try:
            until = time.monotonic() + 120
            while len(server.bodies) < after and time.monotonic() < until:
                assert process.poll() is None
                time.sleep(0.002)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.2)
        before = [body["messages"][-1]["content"] for body in server.bodies]
        assert after <= len(before) < 60
        server.bodies.clear()
        with CallCache(path) as cache:
            stored = cache.get_many(call.key for call in calls(60))
            assert len(stored) >= len(before) - 4
            result = asked(server, cache, 60, concurrency=4)
        again = [body["messages"][-1]["content"] for body in server.bodies]
    assert all(outcome.reply is not None for outcome in result.outcomes.values())
    assert len(again) == len(set(again)) == 60 - len(stored)
    assert not {call.messages[0][1] for call in calls(60) if call.key in stored} & set(again)
    assert len(set(before) & set(again)) <= 4


def test_an_interrupt_stops_at_once_and_the_same_call_continues(server, cache):
    server.latency_s = 0.05

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asked(server, cache, 200, concurrency=3, on_call=stop)
    assert time.monotonic() - began < 3
    time.sleep(0.3)
    seen = len(server.bodies)
    time.sleep(0.2)
    assert len(server.bodies) == seen <= 6 + 2 * 3
    asked(server, cache, 20, concurrency=3)
    assert len({body["messages"][-1]["content"] for body in server.bodies}) == 20


def test_no_connection_outlives_an_endpoint_that_is_closed_while_a_thread_connects(server, cache, monkeypatch):
    connect, connecting, go_on, made = socket.create_connection, threading.Event(), threading.Event(), []
    number = itertools.count()

    def second_one_slowly(*args, **kwargs):
        if next(number):
            connecting.set()
            assert go_on.wait(10)
        made.append(connect(*args, **kwargs))
        return made[-1]

    def stop(done: int, total: int) -> None:
        if done:
            assert connecting.wait(10)
            raise KeyboardInterrupt

    monkeypatch.setattr(socket, "create_connection", second_one_slowly)
    server.latency_s = 0.05
    with pytest.raises(KeyboardInterrupt), Endpoint(server.base_url) as endpoint:
        ask(calls(9), endpoint=endpoint, cache=cache, concurrency=2, on_call=stop)
    go_on.set()
    until = time.monotonic() + 10
    while sum(thread.name.startswith("judge") for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert [one.fileno() for one in made] == [-1, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del endpoint
        gc.collect()


def test_a_closed_endpoint_takes_no_request(server):
    with Endpoint(server.base_url) as endpoint:
        endpoint.send(calls(1)[0])
    with pytest.raises(Refused, match="was closed"):
        endpoint.send(calls(1)[0])
    assert len(server.bodies) == 1


def test_several_processes_may_share_a_store(tmp_path, server):
    def work(offset: int) -> None:
        with (
            CallCache(tmp_path / "shared.sqlite") as own,
            Endpoint(server.base_url) as endpoint,
        ):
            ask(calls(30)[offset:], endpoint=endpoint, cache=own, concurrency=2)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with CallCache(tmp_path / "shared.sqlite") as own:
        assert len(own.get_many(call.key for call in calls(30))) == 30


def test_one_at_a_time_sets_a_store_up(tmp_path, monkeypatch):
    # Two that switch a new file to WAL at once get "database is locked", now and then.
    set_up, inside, most = CallCache._prepare, [], []

    def slowly(self):
        inside.append(self)
        most.append(len(inside))
        time.sleep(0.02)
        set_up(self)
        inside.remove(self)

    monkeypatch.setattr(CallCache, "_prepare", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: CallCache(tmp_path / "shared.sqlite").close(), range(4)))
    assert most == [1] * 4


def test_what_another_process_stored_meanwhile_is_not_asked(server, cache, tmp_path):
    last = calls(3)[-1]

    def first_reply(key, reply):
        with CallCache(cache.path) as other:
            other.put(last.key, Reply(text="from elsewhere"))

    server.latency_s = 0.1
    result = asked(server, cache, 3, concurrency=1, on_reply=first_reply)
    assert result.outcomes[last.key].reply.text == "from elsewhere"
    assert len(server.bodies) == 2


def test_a_store_that_is_none(tmp_path):
    path = tmp_path / "replies.sqlite"
    path.write_text("no database at all, but long enough to be read as one " * 40)
    with pytest.raises(EvidenceError, match="choose another --cache"):
        CallCache(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(EvidenceError, match="Cannot write results"):
        CallCache(tmp_path / "file" / "replies.sqlite")


def test_no_key_in_the_environment():
    with pytest.raises(ConfigurationError, match=r"No key for api\.openai\.com: set LOSSMITH_JUDGE_API_KEY"):
        Endpoint("https://api.openai.com/v1")
    for local in ("http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1"):
        Endpoint(local).close()


def test_a_key_is_not_sent_in_the_open(monkeypatch):
    # Without a key there is nothing to hide, and servers in a local network want none.
    Endpoint("http://judge.example:8000/v1").close()
    for name in ("OPENAI_API_KEY", "LOSSMITH_JUDGE_API_KEY"):
        monkeypatch.setenv(name, KEY)
        for url in ("http://judge.example/v1", "HTTP://192.168.0.7:8000/v1"):
            with pytest.raises(ConfigurationError, match=rf"must be https where a key .* or unset {name}\.") as found:
                Endpoint(url)
            assert KEY not in str(found.value)
        for url in ("https://judge.example/v1", "http://127.0.0.1:1/v1"):
            Endpoint(url).close()


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1", "http://user:word@host/v1", "https://host/v1?key=1", ""],
)
def test_addresses_that_cannot_be_used(url):
    with pytest.raises(ConfigurationError, match="`base_url` must") as found:
        Endpoint(url)
    assert "word" not in str(found.value).replace("password", "")


def test_the_own_variable_goes_before_openais(server, cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-general")
    only(asked(server, cache))
    monkeypatch.setenv("LOSSMITH_JUDGE_API_KEY", KEY)
    asked(server, cache, 2)
    sent = [headers["authorization"] for headers in server.headers_seen]
    assert sent == ["Bearer sk-general", f"Bearer {KEY}"]


def test_the_key_is_in_no_message_no_log_and_no_file(server, cache, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("LOSSMITH_JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    messages = []
    for status in (400, 401, 403, 404):
        server.script = [(status, {}, scripted.error(f"Incorrect API key provided: {KEY}."))]
        with pytest.raises(JudgeError) as found:
            asked(server, cache)
        messages.append(str(found.value))
        assert found.value.__cause__ is None
        assert found.value.__context__ is None or KEY not in repr(vars(found.value.__context__))
    assert "was read from LOSSMITH_JUDGE_API_KEY or OPENAI_API_KEY" in messages[1]
    server.script = [(500, {}, scripted.error(KEY))] * 4
    result = asked(server, cache)
    messages += [outcome.problem for outcome in result.outcomes.values()]
    only(asked(server, cache))
    assert not [message for message in messages if KEY in message]
    assert KEY not in caplog.text
    cache.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not [body for body in server.bodies if KEY in json.dumps(body)]


def test_openai_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"`openai` is needed to ask a judge .*lossmith\[judge\]"):
        Endpoint("http://127.0.0.1:1/v1")


def test_importing_the_judges_does_not_import_openai():
    code = "import sys, lossmith.evaluation.judging; print('openai' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
