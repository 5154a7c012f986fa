"""What `--dry-run` says of memory and speed, and of what does not fit."""

import json
import re

import pytest
import torch

from grm_ray.config.load import load
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Head
from grm_ray.config.serve import ServeJob
from grm_ray.data.chat import ScoringContract
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.footprint import role as footprint_role
from grm_ray.drivers.footprint.role import GIB
from grm_ray.drivers.footprint.roles import roles_of
from grm_ray.drivers.footprint.text import described
from grm_ray.models.backbone import load_causal_lm, load_tokenizer
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from grm_ray.runtime.placement import Node, declared, fit
from tests.end_to_end.conftest import ppo_config, rm_config

ROOMY = Node("a", 64, 8, 64 * GIB, 80 * GIB, 4e14, 3e12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model):
    """Two reward models, adapters on one backbone, as training saves them."""
    from grm_ray.config.schema import Lora, Model

    tokenizer = load_tokenizer(str(tiny_model))
    contract = ScoringContract.of(tokenizer, 128, "left")
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        lora = Lora(rank=4, last_layers=1)
        model = Model(path=str(tiny_model), dtype="float32", lora=lora)
        made = RewardModel(load_causal_lm(model), Head())
        folders.append(tmp_path_factory.mktemp("saved") / f"model{seed}")
        save_reward_model(made, Head(), tokenizer, contract, folders[-1], "", adapter=True)
    return folders


@pytest.fixture
def rm(tmp_path, tiny_model, tiny_data):
    def config(*overrides):
        return load(RewardModelJob, rm_config(tmp_path, tiny_model, tiny_data), list(overrides))

    return config


@pytest.fixture
def ppo(tmp_path, tiny_model, tiny_data, saved):
    def config(*overrides):
        path = ppo_config(tmp_path, tiny_model, tiny_data, saved[0])
        return load(PpoJob, path, list(overrides))

    return config


def told(config, node=ROOMY):
    return described(config, fit(bundles_of(config), [node]), here=False)


def parts(config, role):
    return next(r for r in roles_of(config) if r.name == role).parts


def test_a_reward_model_job(rm):
    text = told(rm())
    assert "memory, at most (GiB)" in text and "trainer x 2:" in text
    assert re.search(r"reward model: [\d.]+ k parameters, [\d.]+ k trainable \(LoRA rank 4\)", text)
    assert "trainer: not measured" in text
    assert "does not fit" not in text and "could not be estimated" not in text


def test_a_ppo_job(ppo):
    text = told(ppo())
    for role in ("learner x 1", "rollout x 1", "scorer x 2"):
        assert role in text
    assert "KV cache 1.00" in text


def test_all_roles_on_declared_gpus_have_a_speed(ppo):
    gpus = ("workers.learner.gpus=1", "workers.rollout.gpus=1", "workers.scorer.gpus=1")
    text = told(ppo(*gpus))
    for work in ("learner: train", "learner: evaluate", "rollout: write", "scorer: score"):
        assert re.search(rf"{work} [\d,]+ tokens/s \(as declared\)", text)
    assert re.search(r"a step of full rows: \S+ s if the phases run one after another", text)


def test_equal_weights_of_several_models_are_held_once(tmp_path, saved):
    def weights(*folders):
        models = {f"m{i}": str(folder) for i, folder in enumerate(folders)}
        # Pairs to bring several to one scale on are not looked at here.
        pairs = {"path": "pairs.jsonl"} if len(models) > 1 else None
        job = ServeJob(name="s", models=models, reference=pairs, dtype="float32")
        # In another dtype than they were saved in, a copy of them is made.
        job.dtype = "bfloat16"
        return parts(job, "scorer")["weights"]

    one, both = weights(saved[0]), weights(*saved)
    assert one < both < 1.8 * one
    adapter = json.loads((saved[0] / "adapter" / "adapter_config.json").read_text())
    (saved[1] / "adapter" / "adapter_config.json").unlink()
    try:
        assert weights(*saved) == 2 * one  # nothing says that they have anything in common
    finally:
        (saved[1] / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))


def test_weights_left_in_their_file_are_there_once_a_machine(saved):
    job = ServeJob(name="s", models={"m": str(saved[0])}, dtype="float32")
    mapped = parts(job, "scorer")["shared weights"]
    job.dtype = "bfloat16"
    assert parts(job, "scorer")["weights"] == mapped * job.workers.count / 2


def test_a_second_copy_is_told_where_all_weights_learn(ppo):
    adapted, whole = parts(ppo(), "learner"), parts(ppo("policy.lora=null"), "learner")
    assert whole["weights"] > 1.8 * adapted["weights"]
    assert whole["optimizer"] > 5 * adapted["optimizer"]


def test_what_does_not_fit_names_a_change_that_does(rm, monkeypatch):
    monkeypatch.setitem(footprint_role.BASELINE, "trainer", 0.0)
    config = rm(
        "training.optimizer.tokens_per_micro_batch=4096", "data.max_length=400", "workers.count=1"
    )
    (role,) = roles_of(config)
    driver = footprint_role.DRIVER * GIB
    node = Node("small", 8, 0, driver + 0.7 * role.on_host)
    text = told(config, node)
    assert "does not fit\n  small has " in text
    found = re.search(r"fits with: (\S+)=(\d+)$", text)
    assert found and found[1] == "training.optimizer.tokens_per_micro_batch"
    changed = rm(
        f"training.optimizer.tokens_per_micro_batch={found[2]}",
        "data.max_length=400",
        "workers.count=1",
    )
    assert roles_of(changed)[0].on_host < 0.7 * role.on_host
    assert "does not fit" not in told(changed, node)


def test_a_gpu_that_is_too_small_is_told(ppo):
    small = Node("a", 64, 8, 64 * GIB, 0.001 * GIB)
    text = told(ppo("workers.scorer.gpus=1"), small)
    assert re.search(r"does not fit\n  scorer: 0\.\d\d GiB on a GPU with room for 0\.00", text)
    assert "none of these changes helps" in text


def test_a_model_that_is_not_here_is_one_line(rm):
    text = told(rm("model.path=nobody/has-this-model"))
    assert text.count("nobody/has-this-model: its config cannot be read offline") == 1
    assert "could not be estimated" not in text and "speed" not in text
    assert (
        "trainer x 2: the memory of its model is not known; process" in text and "at least" in text
    )
    assert "as far as it is known" in text


def test_a_reward_model_that_is_not_here_leaves_the_rest(ppo):
    text = told(ppo("reward.path=runs/not_yet/model"))
    assert "could not be estimated" not in text
    assert "scorer x" in text and "runs/not_yet/model: its config" in text
    assert re.search(r"learner x \d: [\d.]+ each", text)


def test_a_cluster_file_may_declare_memory_and_speed(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes:\n  - {name: n, cpus: 8, gpus: 1, memory_gb: 64, gpu_memory_gb: 80,\n"
        "     gpu_tflops: 400, gpu_bandwidth: 3000}\n"
    )
    (node,) = declared(path)
    assert (node.memory, node.gpu_memory) == (64 * GIB, 80 * GIB)
    assert (node.gpu_flops, node.gpu_bandwidth) == (4e14, 3e12)
