"""Files, folders and patterns are read row by row; a file that cannot be used is named."""

import gzip
import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data import files, sources
from grm_ray.data.files import rows, streamed
from grm_ray.data.sources import Quarantine, iterate

COLUMNS = {"prompt", "chosen", "rejected"}


def made(count, start=0):
    return [
        {"prompt": f"P{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(start, start + count)
    ]


def write_json(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in found)


def read(path, columns=COLUMNS, **keys):
    return [
        (file, line, row["prompt"])
        for file, line, row in rows(Source(path=str(path), **keys), columns)
    ]


def numbers(found):
    return [int(prompt[1:]) for _, _, prompt in found]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_lines_of_columnar_files_are_row_numbers_over_all_batches(tmp_path, name):
    path, table = tmp_path / name, pa.Table.from_pylist(made(2500))
    if name == "a.parquet":
        pq.write_table(table, path, row_group_size=700)
    else:
        new = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as out, new(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=1700)
    found = read(path)
    assert [line for _, line, _ in found] == list(range(1, 2501))
    assert numbers(found) == list(range(2500))


def test_a_pattern_and_a_folder_are_all_their_files_in_the_order_of_names(tmp_path):
    for part in (1, 0, 2):
        write_json(tmp_path / "d" / f"part-{part}.jsonl", made(3, 3 * part))
    (tmp_path / "d" / "README.md").write_text("no rows")
    (tmp_path / "d" / "dataset_info.json").write_text("{}")
    for path in (tmp_path / "d", tmp_path / "d" / "part-*.jsonl", tmp_path / "*" / "part-?.jsonl"):
        found = read(path)
        assert numbers(found) == list(range(9))
        assert [line for _, line, _ in found] == [1, 2, 3] * 3  # of each file
    assert numbers(read(tmp_path / "d" / "part-[12].jsonl")) == list(range(3, 9))


def test_a_folder_whose_files_name_splits_is_read_by_split(tmp_path):
    for split, start in (("train", 0), ("test", 10), ("validation", 20)):
        table = pa.Table.from_pylist(made(2, start))
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert numbers(read(tmp_path)) == [0, 1]
    assert numbers(read(tmp_path, split="test")) == [10, 11]
    assert numbers(read(tmp_path, split="val")) == [20, 21]
    with pytest.raises(
        ConfigError, match="no file of split 'dev'; the splits are test, train, valid"
    ):
        read(tmp_path, split="dev")


def test_a_folder_leaves_no_file_unread_unsaid(tmp_path):
    write_json(tmp_path / "train.jsonl", made(2))
    write_json(tmp_path / "test.jsonl", made(2, 10))
    write_json(tmp_path / "preference" / "preference.jsonl", made(2, 20))  # as in HelpSteer2
    assert numbers(read(tmp_path)) == [0, 1]
    write_json(tmp_path / "extra-pairs.jsonl", made(2, 20))
    with pytest.raises(ConfigError) as error:
        read(tmp_path)
    assert "extra-pairs.jsonl would not be read, only the files of the splits test, train" in str(
        error.value
    )
    assert f"by a pattern, {tmp_path}/*.jsonl for example" in str(error.value)
    assert numbers(read(tmp_path / "[et]*r*.jsonl")) == [20, 21, 0, 1]


def test_a_split_of_ones_own_name_is_read_alone(tmp_path):
    write_json(tmp_path / "train_prefs-0.jsonl", made(2))
    write_json(tmp_path / "test_prefs-0.jsonl", made(2, 10))
    assert numbers(read(tmp_path, split="train_prefs")) == [0, 1]
    write_json(tmp_path / "train-0.jsonl", made(2, 20))
    assert numbers(read(tmp_path, split="train_prefs")) == [0, 1]
    with pytest.raises(ConfigError, match="train_prefs-0.jsonl would not be read"):
        read(tmp_path)


def test_numbered_files_are_of_their_split(tmp_path):
    for name, start in (("train_1", 0), ("train_2", 2), ("test_1", 10)):
        write_json(tmp_path / f"{name}.jsonl", made(2, start))
    assert numbers(read(tmp_path)) == [0, 1, 2, 3]
    assert numbers(read(tmp_path, split="test")) == [10, 11]


def test_splits_of_ones_own_names_are_not_read_as_if_they_had_none(tmp_path):
    write_json(tmp_path / "train_prefs.jsonl", made(2))
    write_json(tmp_path / "test_prefs.jsonl", made(2, 10))
    with pytest.raises(
        ConfigError, match="no file of split 'train'; the splits are test_prefs, train_p"
    ):
        read(tmp_path)


def test_json_files_beside_others_are_not_left_unread_unsaid(tmp_path):
    write_json(tmp_path / "a.jsonl", made(2))
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert numbers(read(tmp_path)) == [0, 1]
    for number in range(6):
        write_json(tmp_path / f"b{number}.json", made(2, 10))
    with pytest.raises(ConfigError, match=r"b0.json, .*, b3.json and 2 more would not be read"):
        read(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    assert len(read(tmp_path)) == 12


def test_folders_and_patterns_without_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no file that ends in .jsonl"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="no file that ends in .* matches"):
        read(tmp_path / "*.jsonl")


def test_a_shard_without_the_columns_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist(made(2)), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet: needs columns 'chosen'"):
        read(tmp_path)


def test_a_json_array_is_read_element_by_element(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHARACTERS", 7)  # elements are longer than what is read at once
    path = tmp_path / "a.json"
    path.write_text("\n " + json.dumps(made(5), indent=2) + "\n")
    found = read(path)
    assert numbers(found) == list(range(5)) and [line for _, line, _ in found] == [1, 2, 3, 4, 5]
    for broken in ('[{"prompt": "P0"}', '[{"prompt": "P0"}, {"pro', '[{"prompt": nonsense}]'):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=r"a\.json: not a JSON array \(element \d"):
            read(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="it has no rows"):
        read(path)
    write_json(path, made(2))  # .json with a row a line
    assert numbers(read(path)) == [0, 1]


def test_reading_keeps_digests_and_no_texts(tmp_path):
    text = "word " * 400
    big = [{**row, "chosen": text + row["chosen"], "rejected": text} for row in made(2500)]
    write_json(tmp_path / "a.jsonl", big)
    pq.write_table(pa.Table.from_pylist(big), tmp_path / "a.parquet", row_group_size=500)
    size = (tmp_path / "a.jsonl").stat().st_size
    del big
    for name, allowed in (("a.jsonl", 0.1), ("a.parquet", 0.5)):
        tracemalloc.start()
        count = sum(1 for _ in sources.iterate(Source(path=str(tmp_path / name)), Quarantine()))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 2500 and peak < allowed * size, (name, peak, size)


def test_the_first_row_comes_before_the_last_one_is_read(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in made(20000))
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = rows(Source(path=str(tmp_path / "a.jsonl.gz")), COLUMNS)
    assert next(found)[2]["prompt"] == "P0"
    with pytest.raises(ConfigError, match="cannot be read"):
        list(found)


def test_a_stream_of_the_hub_client_is_read_as_it_comes(tmp_path):
    write_json(tmp_path / "a.jsonl", made(3))
    path = str(tmp_path / "a.jsonl")

    def stream():
        return datasets.load_dataset("json", data_files=path, split="train", streaming=True)

    assert [(line, row["prompt"]) for line, row in streamed(stream(), "it", COLUMNS)] == [
        (1, "P0"),
        (2, "P1"),
        (3, "P2"),
    ]
    with pytest.raises(ConfigError, match="it: needs columns 'answer'; found columns 'chosen'"):
        list(streamed(stream(), "it", {"answer"}))
    with pytest.raises(ConfigError, match="it has no rows"):
        list(streamed([], "it", COLUMNS))

    def breaking():
        yield from made(2)
        raise OSError("the line is dead")

    with pytest.raises(ConfigError, match="'it' broke off after row 2: the line is dead"):
        list(streamed(breaking(), "it", COLUMNS))


def test_a_set_whose_rows_name_their_split_is_read_by_that(tmp_path):
    found = [{**row, "split": "val" if i % 2 else "train"} for i, row in enumerate(made(6))]
    write_json(tmp_path / "preference" / "all.jsonl", found)
    hub = {"data_dir": "preference", "split": "train"}

    def read_hub(split):
        source = Source(path=str(tmp_path), split=split)
        return [line for _, line, _ in files._hub_rows(source, COLUMNS, hub)]

    assert read_hub("train") == list(range(1, 7))
    assert read_hub("validation") == [2, 4, 6]
    with pytest.raises(ConfigError, match="neither a local file nor available from the hub"):
        list(files._hub_rows(Source(path=str(tmp_path / "no" / "where")), COLUMNS, None))


def test_numbers_and_texts_that_no_machine_can_hold_are_bad_rows(tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    lines = [
        json.dumps(good | {"margin": 10**400}),
        '{"prompt": "p", "chosen": "c", "rejected": ' + "1" * 5000 + "}",
        json.dumps(good | {"chosen": "d", "subset": "\ud800"}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines, json.dumps(good | {"chosen": "e"})]) + "\n")
    quarantine = Quarantine()
    assert [pair.chosen for pair in iterate(Source(path=str(path)), quarantine)] == ["e"]
    assert len(quarantine.rows) == 3
    quarantine.write(tmp_path / "quarantine.jsonl")


def test_a_byte_order_mark_costs_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}).encode()
    )
    assert len(list(iterate(Source(path=str(path)), Quarantine()))) == 1


def test_a_margin_beyond_float32_is_a_bad_row(tmp_path):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = tmp_path / "rows.jsonl"
    rows = [good | {"margin": 1e39}, good | {"chosen": "c", "margin": 1e38}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quarantine = Quarantine()
    assert [pair.chosen for pair in iterate(Source(path=str(path)), quarantine)] == ["c"]
    assert "'margin' is not a number" in quarantine.rows[0]["reason"]


def test_an_array_is_read_in_time_that_grows_with_it_alone(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(2000)]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode())
    copied = 0

    class Counted(str):
        def __getitem__(self, part):
            nonlocal copied
            copied += len(self)
            return Counted(super().__getitem__(part))

        def lstrip(self, signs=None):
            return Counted(super().lstrip(signs))

    class File:
        def __init__(self, text):
            self.text = text

        def read(self, most):
            return Counted(self.text.read(most))

    whole = path.read_text("utf-8-sig")
    with path.open(encoding="utf-8-sig") as text:
        assert [row for _, row in files._array_rows(path, File(text))] == rows
    assert copied <= 2 * len(whole)
    assert [row for _, row in files._json_rows(path)] == rows


def test_an_array_with_a_fault_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHARACTERS", 100)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"b" 2}, ' + '{"a": 3}, ' * 1000 + "{}]")
    with path.open() as text:
        with pytest.raises(ConfigError, match="element 2: Expecting ':'"):
            list(files._array_rows(path, text))
        assert len(text.read()) > 9000
