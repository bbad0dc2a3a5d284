"""Pushes through the real client of the Hub to a stand-in: what arrives, what is told, and what may not be lost."""

import json
from pathlib import Path

import pytest
import yaml

from gsr_rl.hub import push as hub
from gsr_rl.hub.__main__ import main
from gsr_rl.hub.push import PushError, Target, stale
from tests.support.hub_folders import BASE, evaluation, model_folder
from tests.support.hub_stand_in import HubStandIn, client_of

TOKEN = "hf_" + "PlantedTokenOfTheTests0123456789"
STEPS = ("create", "preupload", "batch", "upload", "commit")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    with HubStandIn(TOKEN) as server:
        client_of(server, monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "grpo")


def content_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != hub.RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_model_comes_back_from_the_hub_as_it_was(stand_in, model, tmp_path, capsys):
    from huggingface_hub import snapshot_download

    address = hub.push_folder(model, Target("me/tiny", private=True))
    assert address.startswith(f"{stand_in.endpoint}/me/tiny/commit/") and stand_in.commits("me/tiny") == 1
    assert stand_in.repositories["model", "me/tiny"].private
    got = content_of(Path(snapshot_download("me/tiny", local_dir=tmp_path / "got", endpoint=stand_in.endpoint)))
    got = {name: content for name, content in got.items() if not name.startswith(".cache")}
    same = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    same |= {"chat_template.jinja", "gsr_config.json", "versions.json"}
    assert set(got) == same | {"README.md", "training_config.yaml"}
    assert all(got[name] == (model / name).read_bytes() for name in same)
    training = yaml.safe_load(got["training_config.yaml"])["training"]
    assert training["learning_rate"] == 3e-4 and training["output_dir"] == "grpo"
    assert "python -m gsr_rl.hub push" in capsys.readouterr().out


def test_the_cards_metadata_passes_the_clients_validators(stand_in, model):
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import validate_repo_id

    hub.add_results(evaluation(model.parent / "eval"), model, None)
    hub.push_folder(model, Target("me/tiny"))  # the client has the card's metadata checked before it commits
    assert any(path == "/api/validate-yaml" for _, path, _ in stand_in.requests)
    card = ModelCard(stand_in.files("me/tiny")["README.md"].decode())
    data = card.data
    assert (data.base_model, data.datasets) == ("someone/base-model", ["openai/gsm8k"])
    for name in (data.base_model, *data.datasets):
        validate_repo_id(name)
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert {"gsr-rl", "generative-self-refinement"} <= set(data.tags)
    found = {one.metric_type: one for one in data.eval_results}
    assert found["selfref@4"].metric_value == 60 and found["selfref@4"].metric_args == {"low": 59.0, "high": 61.0}
    assert found["selfref@4"].dataset_type == "openai/gsm8k" and "fix_rate" not in found
    assert "| mix | 40.0 [39.0, 41.0] |" in card.text and "Not evaluated yet" not in card.text
    assert "prompt_template_version" in card.text and "torch 2.13" in card.text


def test_a_second_push_of_the_same_files_makes_no_commit_and_uploads_nothing(stand_in, model):
    hub.push_folder(model, Target("me/tiny"))
    assert main(["push", str(model)]) == 0
    assert stand_in.commits("me/tiny") == 1 and len(stand_in.uploads) == 1


def test_a_revision_is_a_branch_that_is_made(stand_in, model):
    hub.push_folder(model, Target("me/tiny", revision="run-2"))
    assert stand_in.commits("me/tiny") == 0 and stand_in.commits("me/tiny", revision="run-2") == 1


ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
SHARDS = {f"model-0000{part}-of-00002.safetensors" for part in (1, 2)} | {"model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("before", "after"), [(ADAPTER, SHARDS), ({"model.safetensors"}, SHARDS), (SHARDS, {"model.safetensors"})]
)
def test_a_push_takes_out_the_weights_it_replaces_and_nothing_else(before, after, stand_in, model):
    from huggingface_hub import HfApi

    def put(names):
        for path in [*model.glob("*.safetensors*"), *model.glob("adapter_config.json")]:
            path.unlink()
        for name in names:
            (model / name).write_text('{"a": 1}')

    put(before)
    hub.push_folder(model, Target("me/tiny"))
    own = {"notes.md", "extra/model.safetensors", "extra/adapter_config.json", "embeddings.safetensors"}
    for name in own:
        HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=name, repo_id="me/tiny")
    hub.add_results(evaluation(model.parent / "eval"), None, Target("me/tiny"))
    assert before <= set(stand_in.files("me/tiny")), "results replace no weights"
    put(after)
    commits = stand_in.commits("me/tiny")
    hub.push_folder(model, Target("me/tiny"))
    assert stand_in.commits("me/tiny") == commits + 1
    there = set(stand_in.files("me/tiny"))
    assert after | own | {"config.json", "evaluations/mix-k4.json"} <= there and not there & (before - after)


def test_a_smaller_data_set_leaves_no_shard_of_the_larger_one(stand_in, tmp_path):
    from huggingface_hub import HfApi

    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    (tmp_path / "set/README.md").write_text("# set\n")
    for number in (2, 1):
        for old in data.iterdir():
            old.unlink()
        for index in range(number):
            (data / f"train-{index:05d}-of-{number:05d}.parquet").write_bytes(b"rows")
        hub.push_folder(tmp_path / "set", Target("me/set", "dataset"))
        if number == 2:
            own = {"path_in_repo": "data/test-00000-of-00001.parquet", "repo_id": "me/set", "repo_type": "dataset"}
            HfApi().upload_file(path_or_fileobj=b"mine", **own)
    names = {name for name in stand_in.files("me/set", "dataset") if name.startswith("data/")}
    assert names == {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}


def test_of_a_whole_checkpoint_only_the_last_stays():
    there = ["last-checkpoint/global_step1/optim.pt", "last-checkpoint/a.pt", "checkpoint-1/a.pt", "model.safetensors"]
    assert stale(there, {"last-checkpoint/a.pt": b"", "last-checkpoint/global_step2/optim.pt": b""}) == there[:1]


def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(stand_in, model, tmp_path, capsys):
    hub.push_folder(model, Target("me/tiny", private=False))
    with pytest.raises(PushError, match=r"me/tiny is public, but hub_private_repo=true .* say hub_private_repo false"):
        hub.push_folder(model, Target("me/tiny", private=True))
    assert stand_in.commits("me/tiny") == 1
    folder = str(evaluation(tmp_path / "eval"))
    words = ["results", folder, "--model", str(model), "--repo_id", "me/tiny"]
    assert main(words) == hub.PUSH_FAILED, "as hub.json of the model has it"
    assert f"results {folder} --repo_id me/tiny --private\n" in capsys.readouterr().err
    assert main([*words, "--no-private"]) == 0 and stand_in.commits("me/tiny") == 2
    assert main(["push", str(model), "--no-private"]) == 0


def test_the_retry_of_results_keeps_the_wish_for_a_private_repository(stand_in, tmp_path):
    folder = evaluation(tmp_path / "eval")
    stand_in.dies_at = "create"
    with pytest.raises(PushError) as caught:
        hub.add_results(folder, None, Target("me/new", private=True))
    stand_in.revive()
    words = str(caught.value).splitlines()[-1].split()
    assert words[:3] == ["python", "-m", "gsr_rl.hub"] and main(words[3:]) == 0
    assert stand_in.repositories["model", "me/new"].private


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_dies_costs_nothing_and_the_command_completes_the_push(step, stand_in, model, capsys):
    before = content_of(model)
    stand_in.dies_at = step
    with pytest.raises(PushError) as caught:
        hub.push_folder(model, Target("me/tiny", private=True))
    said = str(caught.value)
    assert "Nothing local is lost" in said and f"python -m gsr_rl.hub push {model}" in said and TOKEN not in said
    assert content_of(model) == before
    if step != "create":
        assert stand_in.files("me/tiny") == {}, "a part of a model is never to be seen"
    assert main(["push", str(model)]) == hub.PUSH_FAILED
    assert "Retry with" in capsys.readouterr().err
    stand_in.revive()
    assert main(["push", str(model)]) == 0
    assert stand_in.files("me/tiny")["model.safetensors"] == before["model.safetensors"]
    assert len(stand_in.uploads) == 1, "weights that came up before are not sent again"
    assert stand_in.repositories["model", "me/tiny"].private, "the retry knows what was asked for"
    assert json.loads((model / hub.RECORD).read_text())["commit"]


def test_a_server_that_never_answers_is_given_up(stand_in, model, monkeypatch):
    stand_in.silent_at = "commit"
    monkeypatch.setattr(hub, "START_SECONDS", 2.0)
    with pytest.raises(PushError, match="the Hub's commit to me/tiny was not done after 5 seconds"):
        hub.push_folder(model, Target("me/tiny"))


def test_an_interruption_while_pushing_ends_with_its_own_code(stand_in, model, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub.threading.Thread, "join", interrupted)  # what waits in the main thread
    with pytest.raises(SystemExit) as end:
        hub.push_or_exit(model, Target("me/tiny"))
    assert end.value.code == 130
    said = capsys.readouterr()
    assert "nothing local is lost" in said.err and f"python -m gsr_rl.hub push {model}" in said.out


def test_a_wrong_token_is_told_without_showing_it(stand_in, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PushError, match="401") as caught:
        hub.push_folder(model, Target("me/tiny"))
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "README.md", "evaluations/x-k4.json"])
def test_a_file_that_holds_the_token_is_not_pushed(stand_in, model, name):
    if name == "README.md":
        (model / name).write_text(f"my token is {TOKEN}")
    elif name == "config.json":
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | {"x": TOKEN}))
    elif name == "config.yaml":
        (model / name).write_text(yaml.safe_dump({"training": {"run_name": TOKEN}}))
    else:
        text = json.loads((evaluation(model / "evaluations") / "eval.json").read_text()) | {"model": TOKEN}
        (model / "evaluations/eval.json").unlink()
        (model / name).write_text(json.dumps(text))
    with pytest.raises(PushError, match="holds your token"):
        hub.push_folder(model, Target("me/tiny"))
    assert stand_in.requests == []


def test_no_request_holds_the_token_outside_its_header(stand_in, model):
    hub.push_folder(model, Target("me/tiny"))
    assert len(stand_in.requests) > 4
    assert not any(TOKEN in path or TOKEN.encode() in body for _, path, body in stand_in.requests)
    assert not any(TOKEN.encode() in content for content in content_of(model).values())


def test_results_are_written_into_a_card_once_and_beside_others(stand_in, model, tmp_path):
    first, other = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", 0.3, "own", "problems.jsonl")
    for folder in (first, other, evaluation(tmp_path / "a", 0.7)):
        hub.add_results(folder, model, None)
    from huggingface_hub import ModelCard

    card = ModelCard.load(model / "README.md")
    values = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert values["mix", "selfref@4"] == 70 and values["own", "selfref@4"] == 30
    assert card.text.count("### mix, K = 4") == card.text.count("### own, K = 4") == 1 and "60.0 [" not in card.text
    assert sorted(path.name for path in (model / "evaluations").iterdir()) == ["mix-k4.json", "own-k4.json"]
    hub.push_folder(model, Target("me/tiny"))
    assert "evaluations/own-k4.json" in stand_in.files("me/tiny")


def test_results_go_into_a_card_on_the_hub_and_leave_what_somebody_wrote(stand_in, tmp_path):
    from huggingface_hub import HfApi, ModelCard

    own = (
        "---\nlicense: apache-2.0\nmodel-index:\n- name: x\n  results: []\n---\n# Mine\n\nMy words.\n\n## Last\n\nEnd"
    )
    api = HfApi()
    api.create_repo("me/other")
    api.upload_file(path_or_fileobj=own.encode(), path_in_repo="README.md", repo_id="me/other")
    folder = evaluation(tmp_path / "eval")
    assert main(["results", str(folder), "--repo_id", "me/other"]) == 0
    card = ModelCard(stand_in.files("me/other")["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.model_name == "x"
    assert card.text.index("My words.") < card.text.index("End") < card.text.index("60.0 [59.0, 61.0]")
    assert json.loads(stand_in.files("me/other")["evaluations/mix-k4.json"])["dataset"]["name"] == "openai/gsm8k"
    main(["results", str(evaluation(tmp_path / "eval", 0.65)), "--repo_id", "me/other"])
    text = stand_in.files("me/other")["README.md"].decode()
    assert "65.0 [64.0, 66.0]" in text and "60.0 [59.0" not in text


def test_a_card_that_somebody_wrote_is_pushed_as_it_is(stand_in, model):
    text = "---\nlicense: mit\n---\n# Mine\n"
    (model / "README.md").write_text(text)
    hub.push_folder(model, Target("me/tiny"))
    assert stand_in.files("me/tiny")["README.md"].decode() == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", "nowhere", "--repo_id", "me/x"], "nowhere: there is no such folder"),
        (["push", "EMPTY", "--repo_id", "me/x"], "holds no model"),
        (["push", "EMPTY", "--repo_id", "me/x", "--repo_type", "dataset"], "holds no data set"),
        (["push", "EMPTY"], "--repo_id is not given"),
        (["results", "EMPTY", "--repo_id", "me/x"], "eval.json: there is no such file"),
        (["results", "EMPTY"], "needs --model FOLDER"),
    ],
)
def test_a_command_that_cannot_work_says_why(words, message, tmp_path, capsys):
    words = [str(tmp_path) if word == "EMPTY" else word for word in words]
    assert main(words) == 2
    assert message in capsys.readouterr().err


GRPO = {"dataset_name": "tiny/mix", "per_device_train_batch_size": 16, "num_generations": 8}
DISTILL = {"dataset_name": "tiny/mix", "student_model": "m", "output_dir": "o"}
EVAL = {"dataset_name": "tiny/mix", "model": "m", "output_dir": "o"}


@pytest.mark.parametrize(
    ("program", "values", "message"),
    [
        ("grpo", GRPO | {"hub_token": TOKEN}, "hub_token is set: a token does not belong"),
        ("grpo", GRPO | {"push_to_hub": True, "hub_model_id": "a/b/c"}, "hub_model_id='a/b/c' is no name on the Hub"),
        ("distill", DISTILL | {"push_to_hub": True}, "needs hub_dataset_id"),
        ("eval", EVAL | {"update_model_card": True}, "update_model_card=true needs a folder"),
        ("eval", EVAL | {"model": str(BASE), "push_to_hub": True}, "needs hub_model_id, because model="),
    ],
)
def test_a_bad_key_of_the_hub_is_named_first(program, values, message, monkeypatch):
    from gsr_rl import cli

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError) as caught:
        cli.check_values(program, values)
    assert message in str(caught.value) and TOKEN not in str(caught.value)


def test_a_push_without_token_or_without_network_is_refused_first(monkeypatch, tmp_path):
    from gsr_rl import cli

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="push_to_hub=true with HF_HUB_OFFLINE set"):
        cli.check_values("grpo", GRPO | {"push_to_hub": True})
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(ValueError, match="there is no token: export HF_TOKEN"):
        cli.check_values("grpo", GRPO | {"push_to_hub": True})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_template": "gsr", "prompt_template_version": 1}, "set prompt_template to gsr"),
        ({"prompt_template": "tiny", "prompt_template_version": 7}, "trained on prompt_template tiny, version 7"),
        ({"prompt_template": "other"}, "prompt_template='other' is not known"),
        ([], "is no JSON object"),
    ],
)
def test_a_model_trained_on_another_wording_is_refused(settings, message, model):
    from gsr_rl import cli

    values = EVAL | {"model": str(model), "prompt_template": "tiny"}
    values |= {"max_completion_length": 40, "max_refinement_prompt_length": 200}  # within its window
    cli.check_values("eval", values)
    (model / "gsr_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError) as caught:
        cli.check_values("eval", values)
    assert message in str(caught.value)
