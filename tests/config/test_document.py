"""Whatever stands in a config file: a tree of bounded size, or one message."""

import pytest

from grm_ray.config.document import check_tree, legible, parse, read
from grm_ray.config.errors import ConfigError
from grm_ray.config.load import load
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.serve import ServeJob
from grm_ray.runtime.placement import declared

RM = "name: r\nmodel: {path: smollm2-135m-instruct}\ndata: {train: {path: demo}}\n"


def bomb(levels):
    """Few bytes that unfold to 10^levels values."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, levels):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    return text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 2001-99-99", "not valid YAML"),
        ("x: !!bool maybe", "not valid YAML"),
        ("x: !!timestamp x", "not valid YAML"),
        ("x: !!int ''", "not valid YAML"),
        ("x: " + "9" * 5000, "not valid YAML"),
        ("[" * 3000, "nested too deeply"),
        ("a: &a {b: 1}\nc: {<<: *a}", "line 2: '<<' merges keys"),
        ("c: !!set {<<: {b: 1}}", "'<<' merges keys"),
        ("1: x", "line 1: a key must be text, not 1"),
    ],
)
def test_text_that_is_no_yaml_of_ours_is_refused(text, message):
    with pytest.raises(ConfigError, match=f"^here: .*{message}"):
        parse(text, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), "aliases expanded"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 60 + "]" * 60, "levels deep"),
        # Each part is shallow enough; laid into one another they are not.
        ("a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 20 + "*a" + "]" * 20, "with its aliases"),
        ('a: {b: "x\\0y"}', "key 'a.b': contains '\\\\x00'"),
        ('a: ["\\ud800"]', "key 'a.0.': contains"),
        ('"\\e[2J": 1', "contains '\\\\x1b'"),
        ("a: 0x" + "f" * 5000, "does not fit in 64 bits"),
        ("a: 2001-01-01", "a date, which is neither text nor a number"),
        ("a: !!binary aGk=", "a bytes, which is neither"),
    ],
)
def test_a_tree_that_is_no_config_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        check_tree(parse(text, "here"), "here")


def test_aliases_may_be_used_within_reason():
    check_tree(parse("a: &a [1, 2]\nb: {c: *a, d: *a}\n", "here"), "here")


def test_a_file_that_is_none_is_refused(tmp_path):
    for path, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "none.yaml", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "latin.yaml", "cannot be read"),
        (tmp_path / "large.yaml", "larger than 1048576 bytes"),
        (tmp_path / "list.yaml", "a config must be a mapping"),
    ]:
        (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
        (tmp_path / "large.yaml").write_bytes(b"#" * 1_100_000)
        (tmp_path / "list.yaml").write_text("- x")
        with pytest.raises(ConfigError, match=message):
            read(path)
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfname: r\n")
    assert read(marked) == {"name": "r"}


def test_a_cluster_file_is_read_as_carefully(tmp_path):
    path = tmp_path / "cluster.yaml"
    for text, message in [
        (b"\xff", "cluster file .* cannot be read"),
        (b"nodes: [{name: x, cpus: 1, count: 1000000000}]", "nodes.0..count"),
        (b"nodes: [{name: x, cpus: 1, gpus: 1000000000}]", "nodes.0..gpus"),
        (b"3", "a cluster must be a mapping"),
    ]:
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            declared(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=!!bool x", "not valid YAML"),
        ("name=" + "[" * 3000, "nested too deeply"),
        ("head={kind: mlp, kind: linear}", "'kind' is given twice"),
        ("workers.count=1000000000", "4096"),
        ("head.members=1000000000", "1024"),
        ("name=" + "x" * 200, "at most 128"),
        ("runs=''", "an empty path"),
        ("runs=" + "x" * 300, "longer than a path"),
        ("model.path=~no_such_user_here/x", "no such user"),
        ("data.train.path=" + "x/" * 3000, "longer than a path"),
    ],
)
def test_an_override_that_is_none_is_refused(tmp_path, override, message):
    path = tmp_path / "c.yaml"
    path.write_text(RM)
    with pytest.raises(ConfigError, match=message):
        load(RewardModelJob, path, [override])


def test_a_message_tells_no_more_than_a_reader_can_take_in(tmp_path):
    path = tmp_path / "c.yaml"
    models = ", ".join(f"m{i}: 3" for i in range(500))
    path.write_text(f"name: s\nmodels: {{{models}}}\nport: {'[' * 40 + 'x' + ']' * 40}\n")
    with pytest.raises(ConfigError, match="and 491 more") as told:
        load(ServeJob, path)
    assert len(str(told.value)) < 2000
    said = legible("a\x1b[31m\ud800" + "b" * 5000 + "\n" * 100)
    assert said.startswith("a\\x1b[31m\\xd800bbb") and len(said) < 1500


def test_an_alias_bomb_is_not_written_out_in_the_message(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(bomb(4) + RM + "seed: *a3\n")
    with pytest.raises(ConfigError) as told:
        load(RewardModelJob, path)
    assert "key 'seed': Input should be a valid integer (given: a list)" in str(told.value)
    assert len(str(told.value)) < 2000
