"""ComfyUI with several users, whose jobs are their own."""

from __future__ import annotations

import json

import pytest
from client import job_folder
from comfyui import Server
from graphs import training
from raw import act, ask
from texts import inputs


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    """One with users, that pages from anywhere may use."""
    with Server(tmp_path_factory.mktemp("users"), "--multi-user", "--enable-cors-header") as running:
        yield running


def test_each_user_has_jobs_of_their_own(shared_server):
    ann, bob = (shared_server.post("/users", {"username": name}).strip(b'"').decode() for name in ("ann", "bob"))

    def queue(user: str, route: str, seed: int, **more) -> str:
        body = json.dumps({"prompt": training(seed, steps=2), **more}).encode()
        answer = ask(shared_server, "POST", route, body, comfy_user=user, Content_Type="application/json").json
        shared_server.result(answer["prompt_id"])
        return answer["prompt_id"]

    def jobs(user: str) -> list[str]:
        return [job["job"] for job in ask(shared_server, "GET", "/livelora/jobs", comfy_user=user).json]

    given_id = "0f0e0d0c-0b0a-4908-8706-050403020100"
    assert queue(ann, "/prompt", 770, prompt_id=given_id) == given_id
    queue(bob, "/api/prompt", 771)
    [of_ann], [of_bob] = jobs(ann), jobs(bob)
    assert job_folder(shared_server, of_ann, ann).is_dir() and job_folder(shared_server, of_bob, bob).is_dir()
    assert act(shared_server, of_ann, "duplicate", {"changes": {"seed": 1}}, comfy_user=bob).status == 404
    answer = act(shared_server, of_ann, "duplicate", {"changes": {"seed": 772}}, comfy_user=ann)
    shared_server.result(answer.json["prompt_id"])
    assert (len(jobs(ann)), len(jobs(bob))) == (2, 1)

    def offered(user: str) -> list[str]:
        info = ask(shared_server, "GET", "/object_info/LiveLoraLive", comfy_user=user).json["LiveLoraLive"]
        return inputs(info)["job"]["options"]

    assert [{*offered(user)} for user in (ann, bob)] == [{"newest", *jobs(ann)}, {"newest", of_bob}]
    graph = {"model": {"class_type": "LiveLoraDemoModel", "inputs": {}},
             "live": {"class_type": "LiveLoraLive", "inputs": {
                 "model": ["model", 0], "job": of_ann, "which": "newest", "strength": 1.0}},
             "report": {"class_type": "PreviewAny", "inputs": {"source": ["live", 1]}}}
    answers = {user: ask(shared_server, "POST", "/prompt", json.dumps({"prompt": graph}).encode(), comfy_user=user,
                         Content_Type="application/json").json for user in (ann, bob)}
    shared_server.result(answers[ann]["prompt_id"])
    assert f"There is no job '{of_ann}' here" in str(answers[bob]["node_errors"])


@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_training_of_nobody_is_refused(shared_server, user):
    """ComfyUI runs the prompts of a program that names no user, but no user could see or stop the job."""
    answer = ask(shared_server, "POST", "/prompt", json.dumps({"prompt": training(790, mode="background")}).encode(),
                 Content_Type="application/json", **({} if user is None else {"comfy_user": user}))
    assert "the prompt's header comfy-user named none of them" in str(answer.json["node_errors"]["train"])
    shared_server.result(answer.json["prompt_id"])  # the dataset alone
    assert not job_folder(shared_server, "").exists()


@pytest.mark.parametrize("user", [None, "", "nobody", "__system", "../default", "default"])
def test_a_user_that_is_none(shared_server, user):
    answer = ask(shared_server, "GET", "/livelora/jobs", **({} if user is None else {"comfy_user": user}))
    assert answer.status == 403 and "comfy-user" in answer.error


def test_pages_of_other_sites_where_comfyui_lets_them(shared_server):
    answer = act(shared_server, "none", "pause", {}, Origin="https://other.test")
    assert answer.status == 403 and "comfy-user" in answer.error  # for its user, not for its origin
