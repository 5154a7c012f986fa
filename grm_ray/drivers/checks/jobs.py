"""What can be known of one job's models and data before a worker starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grm_ray.config import registry
from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import EvaluateJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job, Model, Source
from grm_ray.config.serve import ServeJob
from grm_ray.data import sources
from grm_ray.data.chat import ScoringContract
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import reward_stages
from grm_ray.drivers.best_of_n.ensembles import check_ensembles
from grm_ray.drivers.checks.plan import JobPlan, bundles_of
from grm_ray.drivers.checks.readable import readers
from grm_ray.drivers.ppo.canaries import read_canaries
from grm_ray.models import backbone, footprint
from grm_ray.models.checkpoint import (
    check_reward_model,
    is_ours,
    is_whole,
    reward_contract,
)
from grm_ray.models.starting import check_same_head, starting_folder
from grm_ray.runtime.placement import Node
from grm_ray.runtime.tracking import check_backends
from grm_ray.training.reward_loss import RewardLoss

# Columns of a preference pair in the common format.
PAIR = {"chosen", "rejected"}


def check_job(config: Job, cluster: list[Node] | None = None, elsewhere: bool = False) -> JobPlan:
    """As `checks.check`, of a job that starts no others."""
    plan = JobPlan(bundles_of(config))
    with as_config_error():
        check_backends(list(config.tracking))
        if isinstance(config, RewardModelJob):
            _reward_model(config, plan)
        elif isinstance(config, PpoJob):
            _ppo(config, plan, elsewhere)
        elif isinstance(config, BestOfNJob):
            _best_of_n(config, plan, elsewhere)
        elif isinstance(config, EvaluateJob):
            _not_inside(config, {f"models.{n}": path for n, path in config.models.items()})
            for path in config.models.values():
                check_saved_model(path, config.scoring.trust_remote_code, plan)
            check_pairs(config.sets, plan)
        elif isinstance(config, ServeJob):
            for path in config.models.values():
                check_saved_model(path, config.trust_remote_code, plan)
            reward_stages.aggregate("aggregate", config.aggregate)
            if config.reference is not None:
                check_data(config.reference, PAIR, plan)
    plan.finish(config, cluster)
    return plan


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """What is wrong with a config, a model or data is the user's to mend."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _reward_model(config: RewardModelJob, plan: JobPlan) -> None:
    loss = RewardLoss(config.loss)
    _model(config.model, plan)
    if not backbone.is_hub_id(config.model.path):
        _begun_from(config, starting_folder(backbone.resolve(config.model.path)))
    _not_inside(config, {"model.path": config.model.path})
    for source in config.data.train:
        check_data(source, {"prompt", *config.head.attributes} if loss.regression else PAIR, plan)
    check_pairs(config.data.eval, plan)
    if not config.data.eval and config.data.holdout == 0:
        raise ConfigError(
            "data.holdout: 0 and no data.eval leave no pairs to evaluate on; set one of them"
        )


def _begun_from(config: RewardModelJob, folder: Path | None) -> None:
    """That training can go on from the reward model in `folder`; None: there is none."""
    if folder is None:
        return
    meta = check_reward_model(folder)
    _require_whole(folder, meta)
    if not config.new_head:
        check_same_head(folder, config.head)
    if config.loss.alpha and config.loss.regularizer and not meta["language_head"]:
        raise ConfigError(
            f"model.path: {folder} has no language head, which loss.regularizer needs; set "
            "loss.alpha: 0"
        )


def _not_inside(config: Job, paths: Mapping[str, str]) -> None:
    """Refuse to read from the folder that this run makes anew, keeping the old one aside."""
    own = (Path(config.runs).expanduser() / config.name).resolve()
    for key, path in paths.items():
        if Path(path).expanduser().resolve().is_relative_to(own):
            raise ConfigError(
                f"{key}: {path} lies in this run's own folder, which is moved aside when the run "
                "starts; give the run another name"
            )


def _require_whole(folder: Path, meta: Mapping[str, Any]) -> None:
    if is_ours(folder) and not is_whole(folder, dict(meta)):
        raise ConfigError(
            f"reward model {folder}: weights or contract differ from those that were saved; "
            "copy the folder again"
        )


def _ppo(config: PpoJob, plan: JobPlan, elsewhere: bool) -> None:
    models, reference = readers(config), config.ppo.kl.reference
    judge = config.reward.true_reward
    if judge is not None and judge not in models.values():
        registry.resolve("true reward", judge)
    _model(config.policy, plan)
    if reference is not None:
        try:
            _model(config.policy.model_copy(update={"path": reference, "lora": None}), plan)
        except ValueError as error:
            raise ConfigError(f"ppo.kl.reference: {error}") from None
        if not backbone.is_hub_id(reference) and not backbone.is_hub_id(config.policy.path):
            path = backbone.resolve(config.policy.path)
            backbone.check_same_vocabulary(path, reference, config.policy)
    others = {"ppo.kl.reference": reference} if reference is not None else {}
    _not_inside(config, {"policy.path": config.policy.path, **models, **others})
    check_data(config.data.train, {"prompt"}, plan)
    if config.data.eval is not None:
        check_data(config.data.eval, {"prompt"}, plan)
    if config.evaluation.canaries is not None:
        read_canaries(config.evaluation.canaries, Quarantine())
        plan.reads.append(f"data {config.evaluation.canaries.path} (canaries)")
    for key, path in models.items():
        _scorer(config, key, path, plan, elsewhere)
    members = reward_stages.member_names(config.reward)
    reward_stages.check(config.reward, config.rollout.max_new_tokens, len(members))
    if config.guard is not None and config.guard.by == "disagreement" and len(members) == 1:
        raise ConfigError("guard.by: disagreement needs reward.members, or a head with members")


def _best_of_n(config: BestOfNJob, plan: JobPlan, elsewhere: bool) -> None:
    models = {f"proxies.{name}": path for name, path in config.proxies.items()}
    if registry.is_path(config.true_reward):
        models["true_reward"] = config.true_reward
    else:
        registry.resolve("true reward", config.true_reward)
    _model(config.policy, plan)
    _not_inside(config, {"policy.path": config.policy.path, **models})
    check_data(config.data.prompts, {"prompt"}, plan)
    for key, path in models.items():
        _scorer(config, key, path, plan, elsewhere)
    check_ensembles(config)


def _scorer(
    config: PpoJob | BestOfNJob, key: str, path: str, plan: JobPlan, elsewhere: bool
) -> None:
    """That the reward model at `path` can read what the policy will write."""
    if backbone.is_hub_id(path) or Path(path).expanduser().is_dir():
        contract = check_saved_model(path, config.policy.trust_remote_code, plan)
        longest = config.data.max_prompt_length + config.rollout.max_new_tokens + 1
        if contract is not None and longest > contract.max_length:
            raise ConfigError(
                f"{key}: {path} reads at most {contract.max_length} tokens, but "
                f"data.max_prompt_length + rollout.max_new_tokens + 1 is {longest}; lower one of "
                "them"
            )
    elif elsewhere and path.startswith(f"{config.runs}/"):
        plan.unchecked.append(f"reward model {path} (a run's output, not on this machine)")
    else:
        raise ConfigError(
            f"{key}: folder {path} does not exist; train one first "
            f"(python -m grm_ray.rm) or name an existing reward model"
        )


def check_pairs(sets: Mapping[str, Source], plan: JobPlan) -> None:
    """Each of `sets` as `check_data` does."""
    for source in sets.values():
        check_data(source, PAIR, plan)


def check_saved_model(path: str, trust_remote_code: bool, plan: JobPlan) -> ScoringContract | None:
    """A reward model's contract, which its tokenizer must fit; None for a hub id.

    Raises:
        ValueError: no reward model there, or one whose tokenizer builds other sequences.
    """
    if backbone.is_hub_id(path):
        plan.unchecked.append(f"reward model '{path}' (hub id: not looked up)")
        return None
    folder = Path(path).expanduser()
    _require_whole(folder, check_reward_model(path))
    contract = reward_contract(path, trust_remote_code)
    contract.check(backbone.load_tokenizer(str(folder), trust_remote_code))
    plan.reads.append(f"reward model {path}")
    return contract


def _model(model: Model, plan: JobPlan) -> None:
    if backbone.is_hub_id(model.path):
        plan.unchecked.append(f"model '{model.path}' (hub id: not looked up)")
    else:
        path = backbone.resolve(model.path)
        try:
            described = json.loads((Path(path) / "config.json").read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}/config.json: not valid JSON ({error})") from None
        if not isinstance(described, dict):
            raise ConfigError(f"{path}/config.json: not a JSON object")
        _check_model(model, described, backbone.load_tokenizer(path, model.trust_remote_code))
        footprint.check_adapter(path, model)
        plan.reads.append(f"model {path}")


def look_up(model: Model) -> None:
    """What `check` leaves out of a hub id: the hub is asked for its config and tokenizer.

    Raises:
        ConfigError: the hub does not give them, or we cannot use them.
    """
    if not backbone.is_hub_id(model.path):
        return
    from transformers import PretrainedConfig

    try:
        described, _ = PretrainedConfig.get_config_dict(model.path)
        tokenizer = backbone.load_tokenizer(model.path, model.trust_remote_code)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model {model.path}: no such local folder, and the model hub did not provide it "
            f"({said})"
        ) from None
    _check_model(model, described, tokenizer)


def _check_model(model: Model, described: dict[str, Any], tokenizer: Any) -> None:
    if wrong := backbone.unsupported(described):
        raise ConfigError(f"model {model.path}: {wrong}")
    ScoringContract.of(tokenizer, 1, "left")


def check_data(source: Source, columns: set[str], plan: JobPlan) -> None:
    """That a source can be read and has `columns`; what cannot be looked at is noted in `plan`.

    Raises:
        ConfigError: no such file, or one without these columns.
    """
    unknown = sources.check(source, columns)
    if unknown:
        plan.unchecked.append(unknown)
    else:
        plan.reads.append(f"data {source.path} (split '{source.split}')")
