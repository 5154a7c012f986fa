"""A wrong config is one readable message that names the key and what would be right."""

import pytest

from grm_ray.config import registry
from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import EvaluateJob
from grm_ray.config.load import dump, load
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob

RM = """
name: r
model: {path: smollm2-135m-instruct}
data: {train: {path: demo}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def test_a_minimal_config_gets_every_default(write):
    config = load(RewardModelJob, write(RM))
    assert config.loss.alpha == 0.01 and config.workers.count == 2
    assert load(RewardModelJob, write(dump(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RM + "traning: {}", "unknown key 'traning'; did you mean 'training'?"),
        (RM + "training: {epoch: 1}", "unknown key 'training.epoch'; did you mean 'epochs'?"),
        (RM + "training: {epochs: many}", "key 'training.epochs'"),
        (RM + "training: {epochs: 0}", "key 'training.epochs'"),
        (RM + "training: {epochs: .nan}", "key 'training.epochs'"),
        (RM + "training: {epochs: 1.0e+18}", "key 'training.epochs'"),
        (RM.replace("demo", "demo, weight: 1.0e+15"), "key 'data.train[0].weight'"),
        (RM + "name: twice", "line 5: key 'name' is given twice"),
        ("name: r", "key 'model' is missing"),
        (RM + "loss: {regularizer: null}", "alpha > 0 needs a regularizer"),
        (RM.replace("name: r", "name: ../r"), "key 'name'"),
        ("- a", "a config must be a mapping"),
        ("{", "not valid YAML"),
        (RM + "1: 2", "a key must be text"),
        (RM + "model: {lora: {rank: x}}", "is given twice"),
        (RM + "workers: {cpus: -1}", "key 'workers.cpus'"),
        (RM + "workers: {cpus: 0.00001}", "key 'workers.cpus'"),
        (RM + "workers: {gpus: 0.00001}", "key 'workers.gpus': must be 0, or 0.0001 or more"),
        (RM + "tracking: [wandbb]", "key 'tracking[0]'"),
    ],
)
def test_mistakes_are_named(write, text, message):
    with pytest.raises(ConfigError) as error:
        load(RewardModelJob, write(text))
    assert message in str(error.value)
    assert "c.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.epochs=true", "training.epochs"),
        ("training.optimizer.learning_rate=true", "training.optimizer.learning_rate"),
        ("training.optimizer.betas=[true, 0.9]", "training.optimizer.betas"),
        ("training.optimizer.zero_stage=true", "training.optimizer.zero_stage"),
        ("head={attributes: [a], weights: [true]}", "head.weights"),
        ("loss.centering=true", "loss.centering"),
        ("loss.missing_margin=false", "loss.missing_margin"),
        ("data.train={path: demo, limit: yes}", "data.train[0].limit"),
        ("seed=true", "seed"),
    ],
)
def test_true_is_no_number(write, override, key):
    with pytest.raises(ConfigError) as error:
        load(RewardModelJob, write(RM), [override])
    assert f"key '{key}': expected a number, got true/false" in str(error.value)


def test_true_stands_where_it_may(write):
    config = load(
        RewardModelJob,
        write(RM),
        ["new_head=true", "data.train={path: demo, where: {lenbal: true, n: 1}}"],
    )
    assert config.new_head is True and config.data.train[0].where == {"lenbal": True, "n": 1}


def test_true_is_no_number_in_a_mapping(write):
    study = "true_reward: demo_judge\nflips: {noisy: true}\nseeds: [1, true]\n"
    with pytest.raises(ConfigError) as error:
        load(OveroptimizationJob, write(study))
    assert "key 'flips': expected a number" in str(error.value)
    assert "key 'seeds': expected a number" in str(error.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    (tmp_path / "rm_demo.yaml").write_text(RM)
    with pytest.raises(
        ConfigError, match="rm_dmo.yaml does not exist; did you mean .*rm_demo.yaml"
    ):
        load(RewardModelJob, tmp_path / "rm_dmo.yaml")


def test_overrides_reach_nested_keys(write):
    config = load(RewardModelJob, write(RM), ["training.optimizer.learning_rate=1e-3", "seed=7"])
    assert config.training.optimizer.learning_rate == 1e-3 and config.seed == 7


@pytest.mark.parametrize("override", ["seed", "=3", "name.x=3", "training.nope=1"])
def test_a_wrong_override_is_refused(write, override):
    with pytest.raises(ConfigError):
        load(RewardModelJob, write(RM), [override])


def test_a_pool_of_one_scorer_is_refused(write):
    load(PpoJob, write(PPO))
    with pytest.raises(ConfigError, match="workers.scorer.count.*greater than or equal to 2"):
        load(PpoJob, write(PPO + "workers: {scorer: {count: 1}}"))


@pytest.mark.parametrize("temperature", [0, 0.005, 2.5])
def test_best_of_n_has_a_temperature_that_the_engine_takes(write, temperature):
    text = "name: b\npolicy: {path: m}\nproxies: {a: r}\ntrue_reward: demo_judge\n"
    text += "data: {prompts: {path: demo}}\n"
    load(BestOfNJob, write(text), ["rollout.temperature=0.01"])
    with pytest.raises(ConfigError, match="key 'rollout.temperature'"):
        load(BestOfNJob, write(text), [f"rollout.temperature={temperature}"])


PPO = "name: p\npolicy: {path: m}\nreward: {path: r}\ndata: {train: {path: demo}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rollout: {temperature: 0.005}", "key 'rollout.temperature': Input should be greater"),
        ("rollout: {temperature: 2.5}", "key 'rollout.temperature': Input should be less"),
        ("rollout: {samples_per_prompt: 1}\nppo: {estimator: rloo}", "needs 2 or more"),
        ("ppo: {kl: {estimator: sqrt_chi_squared, place: reward}}", "is a loss"),
        ("ppo: {kl: {target: 6, coefficient: 0}}", "coefficient above 0"),
        ("ppo: {kl: {ema: 0.9, reference: m}}", "set only one"),
        ("ppo: {kl: {ema: 0.9, coefficient: 0}}", "ema: with coefficient 0"),
        ("ppo: {kl: {horizon: 50}}", "horizon: without target"),
        ("ppo: {importance_cap: 3}", "importance_cap: it has an effect only"),
        (
            "ppo: {importance_cap: 3, importance: none}\nrollout: {staleness: 1}",
            "importance_cap: it has an effect only",
        ),
        (
            "ppo: {estimator: rloo}\nvalue_head: {kind: mlp}",
            "value_head: ppo.estimator rloo has no critic",
        ),
        ("ppo: {kl: {ema: 0.9}, optimizer: {zero_stage: 3}}", "needs whole weights"),
        ("ppo: {estimator: rloo, critic_warmup: 2}", "has no critic"),
        ("ppo: {critic_warmup: 20}", "leave no step to train"),
        ("ppo: {critic_warmup: 2, value_coefficient: 0}", "the critic does not learn"),
        ("ppo: {critic_warmup: 2, optimizer: {weight_decay: 0.1}}", "would change the policy"),
        ("ppo: {estimator: rloo, gamma: 0.9}", "gamma: estimator rloo does not use it"),
        ("ppo: {estimator: reinforce_pp, lam: 0.9}", "lam: estimator reinforce_pp does not use"),
        ("reward: {path: r, clip: true}", "key 'reward.clip': expected a number"),
        ("ppo: {kl: {coefficient: true}}", "key 'ppo.kl.coefficient': expected a number"),
        ("reward: {path: r, overlong: {margin: 65}}", "rollout.max_new_tokens is 64"),
        ("ppo: {epochs: 1000000000}", "key 'ppo.epochs'"),
        ("ppo: {minibatches: 33}", "samples_per_prompt is 32"),
        ("checkpoint: {best_by: reward}", "nothing to choose the best policy"),
        ("evaluation: {every: 1}\ncheckpoint: {best_by: true_reward}", "needs reward.true_reward"),
        ("evaluation: {every: 1}\ncheckpoint: {best_by: greedy_reward}", "evaluation.greedy: true"),
        ("ppo: {old_logprobs: engine}", "needs that pass for its values"),
        (
            "ppo: {estimator: rloo, old_logprobs: engine}\nrollout: {staleness: 1}",
            "needs rollout.staleness 0",
        ),
        ("rollout: {weight_transfer: nccl}", "workers.rollout.gpus must be above 0"),
        (
            "rollout: {weight_transfer: ipc}\n"
            "workers: {rollout: {gpus: 0.5}, learner: {gpus: 0.5}}",
            "workers.share_devices: true",
        ),
        (
            "rollout: {weight_transfer: nccl}\n"
            "workers: {rollout: {gpus: 0.5}, learner: {gpus: 0.5}, share_devices: true}",
            "cannot connect two workers on the same GPU",
        ),
        ("workers: {share_devices: true}", "CPUs are shared without this key"),
        (
            "workers: {rollout: {gpus: 0.6}, learner: {gpus: 0.6}, share_devices: true}",
            "add up to 1 at most",
        ),
        (
            "rollout: {staleness: 1, engine: {gpu_memory_utilization: 0.5}}\n"
            "workers: {rollout: {gpus: 0.5}, learner: {gpus: 0.5}, share_devices: true}",
            "engines sleep during an update",
        ),
        ("guard: {}", "nothing to watch"),
        ("evaluation: {every: 1}\nguard: {}", "needs reward.true_reward"),
        (
            "reward: {path: r, true_reward: demo_judge}\nevaluation: {every: 1}\n"
            "guard: {action: roll_back}",
            "needs checkpoint.best_by: true_reward, not none",
        ),
        (
            "reward: {path: r, true_reward: demo_judge}\nevaluation: {every: 1}\n"
            "guard: {action: lower}\nppo: {kl: {coefficient: 0}}",
            "must be above 0 and without target",
        ),
        (
            "reward: {path: r, true_reward: demo_judge}\nevaluation: {every: 11}\n"
            "guard: {patience: 2}",
            "do not fit into 20 steps",
        ),
        (
            "reward: {members: {a: x, b: y}, aggregate: conjunction}\nevaluation: {every: 1}\n"
            "guard: {by: disagreement}",
            "no common scale",
        ),
        ("ppo: {estimator: rloo, old_logprobs: engine, importance: token}", "nothing to correct"),
        (
            "rollout: {weight_transfer: nccl}\n"
            "workers: {rollout: {gpus: 0.5}, learner: {gpus: 0.5}}",
            "nccl needs whole GPUs",
        ),
        (
            "workers: {rollout: {gpus: 0.5}, learner: {gpus: 0.5}, share_devices: true}",
            "gpu_memory_utilization must be at most",
        ),
        ("ppo: {dual_clip: 1.0}", "key 'ppo.dual_clip'"),
        ("ppo: {importance_cap: 0.5}", "key 'ppo.importance_cap'"),
        (
            "data: {train: {path: demo, pairs_per_prompt: 1}}",
            "key 'data.train': pairs_per_prompt: a source of prompts does not use it",
        ),
        (
            "data: {train: {path: demo}, eval: {path: demo, pairs_per_prompt: 1}}",
            "key 'data.eval': pairs_per_prompt",
        ),
        (
            "evaluation: {canaries: {path: c.jsonl, max_characters: 9}}",
            "key 'evaluation.canaries': max_characters",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(write, text, message):
    base = "".join(x for x in PPO.splitlines(True) if x.split(":")[0] != text.split(":")[0])
    with pytest.raises(ConfigError) as error:
        load(PpoJob, write(base + text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "ppo: {kl: {target: 6, horizon: 50}}",
        "ppo: {importance_cap: 3}\nrollout: {staleness: 1}",
        "ppo: {importance_cap: 3, importance: sequence}",
        "ppo: {estimator: gae}\nvalue_head: {kind: mlp}",
        "ppo: {estimator: rloo, importance_cap: 2, kl: {horizon: 1000}}\nvalue_head: {bias: false}",
    ],
)
def test_a_key_that_is_used_or_has_its_default_may_be_set(write, text):
    config = load(PpoJob, write(PPO + text))
    assert load(PpoJob, write(dump(config))) == config


def test_an_ensemble_that_is_judged_has_each_model_once(write):
    text = "name: e\nmodels: {a: x, b: y}\nsets: {s: {path: demo}}\nensembles: {c: {members: %s}}"
    load(EvaluateJob, write(text % "[a, b]"))
    with pytest.raises(ConfigError, match="ensembles.c.members: a model is listed twice"):
        load(EvaluateJob, write(text % "[a, a]"))


def test_sources_of_prompts_with_every_default_load_again(write):
    text = PPO.replace("demo}", "demo}, eval: {path: demo, limit: 2, max_characters: 9}")
    config = load(PpoJob, write(text + "evaluation: {canaries: {path: c.jsonl}}\n"))
    assert "pairs_per_prompt: null" in dump(config)
    assert load(PpoJob, write(dump(config))) == config


def test_more_minibatches_than_ranks_have_rows_is_fine(write):
    load(PpoJob, write(PPO + "ppo: {minibatches: 32}\nworkers: {learner: {count: 3}}"))


def test_registry_names():
    assert registry.resolve("preference loss", "bradley_terry").__name__ == "bradley_terry"
    assert registry.resolve("true reward", "math:sqrt")(4.0) == 2.0
    with pytest.raises(ConfigError, match="did you mean 'bradley_terry'"):
        registry.check("preference loss", "bradly_terry")
    with pytest.raises(ConfigError, match="cannot import"):
        registry.resolve("true reward", "no_such_module:judge")


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("{name: http, url: 'https://bob:hunter2@rules:8000/'}", "url"),
        ("{name: http, url: 'https://hunter2@rules/'}", "url"),
        ("{name: http, url: 'https://rules/?a=b&token=hunter2'}", "url"),
        ("{name: http, url: 'https://rules/', Token: hunter2}", "Token"),
        ("{name: http, url: 'https://rules/', more: {password: hunter2}}", "more.password"),
        ("{name: http, url: 'https://rules/', hf_token: hunter2}", "hf_token"),
        ("{name: http, url: 'https://rules/', X-Api-Key: hunter2}", "X-Api-Key"),
        ("{name: http, url: 'https://rules/', client_secret: 8472}", "client_secret"),
    ],
)
def test_secrets_are_refused_by_their_key_and_not_repeated(write, rule, key):
    override = f"reward.stages=[{{stage: rule, rule: {rule}}}]"
    with pytest.raises(ConfigError) as error:
        load(PpoJob, write(PPO), [override])
    said = str(error.value)
    assert f"key 'reward.stages[0].rule.{key}'" in said
    assert "mode 600" in said and "hunter2" not in said and "8472" not in said


@pytest.mark.parametrize(
    "value",
    [
        "https://rules:8000/score?model=grm&n=4",
        "hf://datasets/someone/pairs@main",
        "someone@example.org",
        "",
    ],
)
def test_addresses_without_secrets_are_taken(write, value):
    others = "token_file: /run/secrets/rules, max_tokens: 3, stop_token: x"
    rule = f"{{name: http, url: '{value}', {others}}}"
    load(PpoJob, write(PPO), [f"reward.stages=[{{stage: rule, rule: {rule}}}]"])
