"""The store of units: whole shards, each unit once, one process a part, parts that join."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gsr_rl.engines.jobs import ShardStore, Units

UNITS = [{"unit": f"p{i}", "text": "ü" * i, "nested": {"unit": "other"}} for i in range(7)]


def store(folder, part=None, **settings) -> ShardStore:
    return ShardStore(folder, {"seed": 0} | settings, part)


def test_units_come_back_as_they_were_put_in_one_at_a_time(tmp_path):
    one = store(tmp_path)
    one.append("candidates", UNITS[:3])
    one.append("candidates", UNITS[3:])
    one.append("refinements", UNITS[:1])
    units = one.load("candidates")
    assert list(units) == [f"p{i}" for i in range(7)] and len(units) == 7
    assert [units[unit] for unit in reversed(list(units))] == UNITS[::-1]
    assert "p3" in units and "other" not in units and "p3" not in one.load("refinements")


def test_threads_read_units_beside_each_other(tmp_path):
    many = [{"unit": f"p{i}", "text": "ü" * (i % 50)} for i in range(400)]
    one = store(tmp_path)
    one.append("candidates", many)
    units = one.load("candidates")

    def read(start: int) -> bool:
        return all(units[unit["unit"]] == unit for _ in range(20) for unit in many[start:] + many[:start])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, (0, 100, 200, 300)))


def test_a_unit_that_two_shards_hold_counts_once(tmp_path):
    one = store(tmp_path)
    one.append("candidates", UNITS)
    one.append("candidates", UNITS[2:4])
    assert list(one.load("candidates")) == [unit["unit"] for unit in UNITS]


@pytest.mark.parametrize("identity", ['quote"d', "back\\slash", "ü", "a" * 300, "ü" * 5000, 'x", "unit": "y'])
def test_any_id_is_found_at_the_front_of_its_line(tmp_path, identity):
    store(tmp_path).append("candidates", [{"text": "x", "unit": identity}])
    units = store(tmp_path).load("candidates")
    assert list(units) == [identity] and units[identity] == {"unit": identity, "text": "x"}


def test_another_key_is_named_with_its_old_and_new_value(tmp_path):
    store(tmp_path, model="a").append("candidates", UNITS)
    with pytest.raises(ValueError, match=r"model was 'a', is 'b'; top_p was None, is 0.9"):
        store(tmp_path, model="b", top_p=0.9)
    store(tmp_path, model="a")


def test_secrets_in_the_settings_are_not_stored(tmp_path):
    options = {"headers": {"X-API-Key": "sk-12", "Authorization": "Bearer sk-34"}, "reasoning_effort": "low"}
    one = store(tmp_path, endpoint_options=options)
    one.append("candidates", UNITS)
    assert "sk-" not in (tmp_path / "settings.json").read_text()
    with pytest.raises(ValueError, match="endpoint_options was") as caught:
        store(tmp_path, endpoint_options=options | {"reasoning_effort": "high"})
    assert "sk-" not in str(caught.value)


def test_a_folder_without_results_takes_other_settings(tmp_path):
    store(tmp_path, model="a")
    store(tmp_path, model="b").append("candidates", UNITS)
    store(tmp_path, model="b")
    with pytest.raises(ValueError, match="model was 'b', is 'a'"):
        store(tmp_path, model="a")


def test_settings_that_a_process_works_with_stay(tmp_path):
    one = store(tmp_path, "1/2", model="a")
    with one.lock(), pytest.raises(ValueError, match="model was 'a', is 'b'"):
        store(tmp_path, "2/2", model="b")
    store(tmp_path, "2/2", model="b")
    with pytest.raises(ValueError, match="model was 'b', is 'a'"), one.lock():
        pass


def test_a_second_process_on_the_same_part_is_refused_and_a_dead_one_is_not_missed(tmp_path):
    code = (
        "import sys, time; from gsr_rl.engines.jobs import ShardStore\n"
        "with ShardStore(sys.argv[1], {'seed': 0}, sys.argv[2]).lock(): print('in', flush=True); time.sleep(60)"
    )
    store(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "1/2"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    for part in ("1/2", None):
        with (
            pytest.raises(ValueError, match=rf"is in use by process {other.pid} on .*--shard i/n"),
            store(tmp_path, part).lock(),
        ):
            pass
    with store(tmp_path, "2/2").lock():
        pass
    half_written = tmp_path / ".candidates-1of2-000000.jsonl.xyz.jsonl"
    half_written.write_text('{"unit": "p')
    other.kill()
    other.wait()
    with store(tmp_path, "1/2").lock():
        assert not half_written.exists()


def test_parts_of_other_folders_are_taken_over_once(tmp_path):
    first, second = store(tmp_path / "a" / "shards", "1/2"), store(tmp_path / "b" / "shards", "2/2")
    first.append("candidates", UNITS[:4])
    second.append("candidates", UNITS[3:])
    whole = store(tmp_path / "a" / "shards")
    assert whole.take_over(tmp_path / "b" / "shards") == 1
    assert whole.take_over(tmp_path / "b" / "shards") == 0
    lines = [line for path in whole.folder.glob("candidates-*.jsonl") for line in path.open()]
    assert sorted(json.loads(line)["unit"] for line in lines) == [f"p{i}" for i in range(7)]
    assert {unit: whole.load("candidates")[unit] for unit in whole.load("candidates")} == {u["unit"]: u for u in UNITS}


@pytest.mark.parametrize("left", ["", '{"unit": "p2", "text": "half'])
def test_what_a_killed_process_left_half_written_is_not_taken_over(tmp_path, left):
    other, whole = store(tmp_path / "b", "2/2"), store(tmp_path / "a")
    other.append("candidates", UNITS[:1])
    (tmp_path / "b" / ".candidates-2of2-000001.jsonl.abc.jsonl").write_text(left)
    assert whole.take_over(tmp_path / "b") == 1 and list(whole.load("candidates")) == ["p0"]


def test_a_folder_of_other_settings_is_not_taken_over(tmp_path):
    store(tmp_path / "b" / "shards", seed=1)
    whole = store(tmp_path / "a" / "shards")
    with pytest.raises(ValueError, match="seed was 1, is 0"):
        whole.take_over(tmp_path / "b" / "shards")
    with pytest.raises(ValueError, match="there are no shards"):
        whole.take_over(tmp_path / "c" / "shards")


def test_numbers_of_shards_never_come_twice(tmp_path):
    one = store(tmp_path)
    for unit in UNITS[:3]:
        one.append("candidates", [unit])
    (tmp_path / "candidates-all-000000.jsonl").unlink()
    one.append("candidates", UNITS[3:])
    assert list(one.load("candidates")) == [f"p{i}" for i in range(1, 7)]
    assert isinstance(one.load("refinements"), Units) and len(one.load("refinements")) == 0
