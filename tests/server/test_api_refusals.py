"""The HTTP API says no: with the right status, a sentence, and never a 5xx, whatever is sent.

The statuses are those of RFC 9110: 400 malformed, 403 foreign, 404 unknown, 405 wrong method, 409 conflicts with the
state, 413 too large."""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote

import pytest
from client import newest_job
from graphs import training, with_preview
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from livelora.trainer.recipe.config import TrainConfig
from raw import act, ask, say

LARGEST = 64 * 1024
KEYS = {"pause": set(), "stop": set(), "discard": set(), "save": set(), "export": set(), "sample": set(),
        "delete": set(), "resume": {"client_id"}, "extend": {"steps", "client_id"}, "move": {"position"},
        "share": {"policy"}, "duplicate": {"changes", "client_id"}}
"""Actions and the keys of their bodies, as docs/api.md lists them."""
REFUSED_WHEN_DONE = ("pause", "resume", "stop", "discard", "save", "sample")

many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
text = st.text(max_size=60)
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
no_field = text.filter(lambda name: name not in TrainConfig.__dataclass_fields__)
outside = st.sampled_from([
    "../job.json", "..%2fjob.json", "%2e%2e/job.json", "%2e%2e%2fjob.json", "..%5cjob.json", "..\\job.json",
    "%252e%252e%252fjob.json", "....//job.json", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "C:%5cboot.ini",
    "file:%2f%2f%2fetc%2fpasswd", "%00", "step_000000_00.png%00.json", "%c0%ae%c0%ae/job.json", "%ff%fe", "~", ".",
    "..", "*", "step_*", "%0d%0aSet-Cookie:x", "CON", "a" * 7000])


@pytest.fixture(scope="module")
def job(server) -> str:
    """One that is done, with pictures."""
    server.run(with_preview(training(seed=700, steps=2), "owl", every=2))
    return newest_job(server)


@pytest.fixture(scope="module", autouse=True)
def nothing_changes(server, job):
    """Whatever is refused has left the job as it was."""
    before = server.get(f"/livelora/jobs/{job}")
    yield
    assert server.get(f"/livelora/jobs/{job}") == before


def one_segment(name: str) -> str:
    """A name as one part of a path. Dots alone cannot be one: clients and servers take them as directories."""
    return quote(name, safe="", errors="replace") if name.strip(".") else "%00"


@many
@given(name=text, action=st.sampled_from([*KEYS, "metrics", "samples/x.png", ""]))
def test_no_name_but_a_jobs_own_finds_one(server, name, action):
    path = f"/livelora/jobs/{one_segment(name)}/{action}".rstrip("/")
    answer = ask(server, "POST" if action in KEYS else "GET", path)
    assert (answer.status, "There is no job" in answer.error) == (404, True)


@many
@given(name=text)
def test_no_name_but_a_samples_own_finds_one(server, job, name):
    answer = ask(server, "GET", f"/livelora/jobs/{job}/samples/{one_segment(name)}")
    assert answer.status == 404 and f"Job {job} has no sample" in answer.error


@settings(many, max_examples=100)
@given(name=outside, route=st.sampled_from(["{}", "{}/metrics", "{}/samples/x.png", "JOB/samples/{}", "JOB/{}"]),
       method=st.sampled_from(["GET", "POST"]))
def test_no_path_leads_to_another_file(server, job, name, route, method):
    answer = ask(server, method, "/livelora/jobs/" + route.replace("JOB", job).format(name))
    assert answer.status in (404, 405)  # 405: a POST to where there is only a GET
    assert b"root:" not in answer.body and b"fingerprint" not in answer.body


def test_a_path_longer_than_a_request_line_may_be(server, job):
    """aiohttp takes 8190 bytes and answers for itself."""
    assert ask(server, "GET", f"/livelora/jobs/{job}/samples/{'a' * 10000}").status == 400


@many
@given(body=st.binary(min_size=1, max_size=200), action=st.sampled_from(REFUSED_WHEN_DONE))
def test_bytes_that_are_no_json_object(server, job, body, action):
    answer = ask(server, "POST", f"/livelora/jobs/{job}/{action}", body)
    blank = not body.strip(b" \t\r\n\v\f")  # as bytes.strip does
    assert (answer.status, bool(answer.error)) == (409 if blank else 400, True)


@settings(many, max_examples=150)
@given(body=json_values, action=st.sampled_from(sorted(KEYS)))
def test_json_that_is_no_body_of_this_action(server, job, body, action):
    """An object without its keys: the state refuses those that take none."""
    if action in ("delete", "resume", "export") and body == {}:
        return
    answer = ask(server, "POST", f"/livelora/jobs/{job}/{action}", json.dumps(body).encode())
    fits = body == {} and action in REFUSED_WHEN_DONE
    assert (answer.status, bool(answer.error)) == (409 if fits else 400, True)


@many
@given(steps=json_values.filter(lambda v: type(v) is not int or not 1 <= v <= 100000))
def test_steps_that_are_none(server, job, steps):
    answer = act(server, job, "extend", {"steps": steps})
    assert answer.status == 400
    assert "steps must be a whole number from 1 to 100000, got" in answer.error or "is not JSON" in answer.error


@many
@given(changes=st.dictionaries(no_field, json_values, min_size=1, max_size=3))
def test_changes_of_what_is_no_field_of_a_recipe(server, job, changes):
    answer = act(server, job, "duplicate", {"changes": changes})
    assert answer.status == 400 and ("is no field of a recipe" in answer.error or "is not JSON" in answer.error)


@many
@given(field=st.sampled_from(["steps", "rank", "learning_rate", "optimizer", "erase", "alpha", "target_regex"]),
       value=st.none() | st.lists(st.integers(), max_size=2) | st.dictionaries(text, text, max_size=2))
def test_changes_of_the_wrong_kind(server, job, field, value):
    answer = act(server, job, "duplicate", {"changes": {field: value}})
    assert answer.status == 400 and f"{field} must be" in answer.error


@pytest.mark.parametrize(("changes", "told"), [
    ({"steps": True}, "steps must be a whole number, got 'True'."),
    ({"steps": 0}, "steps must be from 1 to 100000, got 0."),
    ({"steps": 10**30}, "steps must be from 1 to 100000, got 1000000000000000000000000000000."),
    ({"learning_rate": 10**300}, "learning_rate must be a number"),
    ({"optimizer": "SGD"}, "optimizer must be one of AdamW8bit"),
    ({"target_regex": "("}, "target_regex is no regular expression"),
    ({"target_regex": "a{1,99999999999}"}, "This recipe cannot be trained"),
    ({"lr_warmup_steps": 9}, "lr_warmup_steps (9) is longer than the run (2 steps)"),
    ({"block_ranks": "triple: 3"}, "block_ranks names blocks that FLUX.1 does not have: triple"),
])
def test_changes_that_cannot_be_trained(server, job, changes, told):
    answer = act(server, job, "duplicate", {"changes": changes})
    assert answer.status == 400 and told in answer.error


def test_a_duplicate_without_a_change(server, job):
    for changes in ({}, {"seed": 700}):
        answer = act(server, job, "duplicate", {"changes": changes})
        assert answer.status == 409 and "at least one change" in answer.error


@pytest.mark.parametrize(("action", "body", "told"), [
    ("move", {"position": -1}, "position must be a whole number from 0"),
    ("move", {"position": 1.0}, "position must be a whole number from 0"),
    ("share", {"policy": "mine"}, "policy must be one of prompts first, fair share, training first, got \"mine\"."),
    ("extend", {}, "steps is missing. Give a whole number from 1 to 100000."),
    ("extend", {"steps": 1, "step": 2}, "There is no key 'step' for this action. It takes: steps, client_id."),
    ("resume", {"client_id": 5}, "client_id must be text"),
    ("pause", {"force": True}, "There is no key 'force' for this action. It takes: none."),
])
def test_a_body_of_the_wrong_kind(server, job, action, body, told):
    answer = act(server, job, action, body)
    assert answer.status == 400 and told in answer.error


@pytest.mark.parametrize("body", [
    b"{", b"{} {}", b"null", b"[1]", b'"pause"', b"{'a': 1}", b'{"steps": NaN}', b'{"steps": Infinity}', b"\xff\xfe",
    b'{"steps": ' + b"9" * 5000 + b"}", b"[" * 60000, b'{"a":' * 10000, b"\x00", b"\xef\xbb\xbf{}x"])
def test_malformed_json(server, job, body):
    answer = ask(server, "POST", f"/livelora/jobs/{job}/extend", body)
    assert answer.status == 400 and "The body" in answer.error


@pytest.mark.parametrize("action", REFUSED_WHEN_DONE)
def test_an_action_that_does_not_go_with_the_state(server, job, action):
    answer = act(server, job, action)
    assert answer.status == 409 and answer.error.endswith(".")


def test_an_action_that_is_none(server, job):
    answer = act(server, job, "explode")
    assert answer.status == 404 and "There is no action 'explode'. Actions: pause, stop," in answer.error


def test_other_methods(server, job):
    assert {ask(server, method, f"/livelora/jobs/{job}").status for method in ("PUT", "DELETE", "PATCH")} == {405}
    assert ask(server, "DELETE", f"/livelora/jobs/{job}/pause").status == 405
    assert ask(server, "GET", f"/livelora/jobs/{job}/pause").status == 404


@many
@given(query=st.dictionaries(st.sampled_from(["since", "most", "other"]), text, min_size=1))
def test_any_query(server, job, query):
    def number(name, low, high):
        value = query.get(name, "5")
        return value.isascii() and value.lstrip("-").isdigit() and value.count("-") <= 1 and low <= int(value) <= high

    path = f"/livelora/jobs/{job}/metrics?" + "&".join(f"{k}={quote(v, errors='replace')}" for k, v in query.items())
    answer = ask(server, "GET", path)
    assert answer.status == (200 if number("since", -1, 10**9 - 1) and number("most", 1, 10000) else 400)
    assert answer.status == 200 or answer.error


def test_bodies_that_are_too_large(server, job):
    path = f"/livelora/jobs/{job}/pause"
    large = json.dumps({"a": "x" * (LARGEST - 8)}).encode()
    assert len(large) == LARGEST + 1
    for body in (large, (large[i:i + 1000] for i in range(0, len(large), 1000))):  # the second one goes chunked
        answer = ask(server, "POST", path, body)
        assert answer.status == 413 and "larger than 65536 bytes" in answer.error
    assert ask(server, "POST", path, large[:LARGEST - 1]).status == 400  # as large as it may be, and cut short


def test_a_body_whose_length_is_not_what_it_says(server, job):
    head = f"POST /livelora/jobs/{job}/pause HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert say(server, f"{head}Content-Length: 99999999\r\n\r\n{'x' * 70000}".encode()).status == 413
    assert say(server, f"{head}Content-Length: -5\r\n\r\n{{}}".encode()).status == 400
    assert say(server, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n".encode()).status == 400


def test_packed_bodies(server, job):
    path = f"/livelora/jobs/{job}/pause"
    bomb = gzip.compress(b" " * 30_000_000)
    assert len(bomb) < LARGEST
    assert ask(server, "POST", path, bomb, Content_Encoding="gzip").status == 413
    assert ask(server, "POST", path, gzip.compress(b"{}"), Content_Encoding="gzip").status == 409
    answer = ask(server, "POST", path, b"this is no gzip", Content_Encoding="gzip")
    assert answer.status == 400 and "cannot be read" in answer.error


@pytest.mark.parametrize("origin", ["http://192.0.2.66:8188", "http://192.0.2.7", "https://evil.test", "null", "",
                                    "http://192.0.2.7:8188@evil.test", "http://192.0.2.7.evil.test:8188"])
def test_pages_of_other_sites(server, job, origin):
    """The host is a documentation address (RFC 5737), not a loopback one: ComfyUI itself would let these pass."""
    answer = act(server, job, "pause", {}, Host="192.0.2.7:8188", Origin=origin)
    assert answer.status == 403 and "may not change jobs on '192.0.2.7:8188'" in answer.error


def test_our_own_page(server, job):
    for host in ("192.0.2.7:8188", "192.0.2.7", "[2001:db8::1]:8188", f"127.0.0.1:{server.port}"):
        assert act(server, job, "pause", {}, Host=host, Origin=f"http://{host}").status == 409


@many
@given(name=st.sampled_from(["Origin", "Content-Type", "Accept", "Cookie", "Comfy-User", "Expect", "X-Forwarded-Host"]),
       value=st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="[]:/"), max_size=40))
def test_any_header(server, job, name, value):
    """ComfyUI's own check of origins takes no brackets and no ports that are none; those never reach us."""
    answer = ask(server, "POST", f"/livelora/jobs/{job}/pause", b"{}", **{name: value})
    if name == "Expect" and value.strip() and value.strip().lower() != "100-continue":
        assert answer.status == 417  # aiohttp's own
    else:
        assert answer.status == (403 if name == "Origin" else 409) and answer.error
