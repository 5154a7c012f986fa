"""`--keys`: the reference is YAML, and a config once what is required has been filled in."""

import pytest
import yaml
from pydantic import BaseModel

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.judging import CurateJob, EvaluateJob, StudyJob
from grm_ray.config.load import apply
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reference import reference
from grm_ray.config.registry import REGISTRY
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Section
from grm_ray.config.serve import ServeJob

JOBS = [
    RewardModelJob,
    PpoJob,
    BestOfNJob,
    EvaluateJob,
    StudyJob,
    CurateJob,
    ServeJob,
    OveroptimizationJob,
]
SOURCE = {"path": "demo"}
REQUIRED = {
    RewardModelJob: {"model.path": "m", "data.train": [SOURCE]},
    PpoJob: {"policy.path": "m", "reward.path": "r", "data.train.path": "demo"},
    ServeJob: {"models": {"one": "m"}},
    EvaluateJob: {"models": {"one": "m"}, "sets": {"held_out": SOURCE}},
    CurateJob: {"data.path": "demo", "base": {}},
    BestOfNJob: {
        "policy.path": "m",
        "data.prompts.path": "demo",
        "proxies": {"one": "r"},
        "true_reward": "demo_judge",
    },
    StudyJob: {
        "base": {},
        "vary": {"loss": {"bt": {}}, "seed": {"0": {"seed": 0}}},
        "sets": {"held_out": SOURCE},
        "repeat": "seed",
        "baseline": "bt",
    },
    OveroptimizationJob: {
        "true_reward": "demo_judge",
        "data.train.path": "demo",
        "data.test.path": "demo",
        "flips": {"clean": 0.0},
        "seeds": [0, 1],
        "reward_model": {},
        "models": {"bt": {}},
        "proxies": {"bt": {"model": "bt"}},
        "baseline": "bt",
        "ppo": {},
    },
}


def sections(schema, seen):
    """Every section that is reached from a job."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        if schema not in seen:
            seen.add(schema)
            for field in schema.model_fields.values():
                sections(field.annotation, seen)
        return seen
    for part in getattr(schema, "__args__", ()):
        sections(part, seen)
    return seen


@pytest.mark.parametrize("job", REQUIRED)
def test_the_reference_with_what_is_required_is_the_default_config(job):
    written, plain = yaml.safe_load(reference(job)), {}
    for key, value in {"name": "run", **REQUIRED[job]}.items():
        apply(written, key, value)
        apply(plain, key, value)
    assert job.model_validate(written) == job.model_validate(plain)


@pytest.mark.parametrize("job", JOBS)
def test_every_key_of_every_section_is_told(job):
    told = {line.strip(" #").split(":")[0] for line in reference(job).split("\n")}
    for section in sections(job, set()):
        assert issubclass(section, Section)
        assert set(section.model_fields) <= told, section


@pytest.mark.parametrize("job", JOBS)
def test_every_key_of_every_section_has_a_text(job):
    for section in sections(job, set()):
        own = [part for part in section.__mro__ if issubclass(part, Section)]
        docs = [part.__dict__.get("__doc__") or "" for part in own]
        assert docs[0], f"{section.__name__} has no docstring"
        for name, field in section.model_fields.items():
            told = field.description or f"`{name}`" in " ".join(docs)
            assert told, f"{section.__name__}.{name} has no text"


def uncommented(text, key):
    """The reference with the section of `key` written out, which is behind comment signs."""
    lines, inside = [], False
    for line in text.split("\n"):
        if line.startswith(f"{key}:"):
            inside, line = True, f"{key}:"
        elif inside and not line.startswith("#  "):
            inside = False
        lines.append(line.removeprefix("# ") if inside else line)
    return yaml.safe_load("\n".join(lines))[key]


def test_sections_of_lists_and_dicts_stand_where_they_belong():
    sets = uncommented(reference(EvaluateJob), "sets")
    assert list(sets) == ["NAME"] and sets["NAME"]["format"] == "trl"
    proxies = uncommented(reference(OveroptimizationJob), "proxies")
    assert proxies["NAME"]["aggregate"] == {"name": "mean"}
    guard = uncommented(reference(PpoJob), "guard")
    assert guard["patience"] == 2
    data = [line.removeprefix("  ") for line in reference(RewardModelJob).split("\n")]
    train = uncommented(
        "\n".join(data[data.index("train:  # list of section; required") :]), "train"
    )
    assert train[0]["weight"] == 1.0


def test_meanings_types_bounds_and_names_are_told():
    text = reference(PpoJob)
    assert "  # Upwards, where it is to be another one (DAPO's clip-higher)." in text
    assert "  clip_high: null  # number, above 0 | null\n" in text
    assert "  kind: linear  # linear | mlp\n" in text
    assert "  name: mean  # text\n" in text  # the parent's default, not the section's
    assert "  #   rank: 16  # whole number, above 0\n" in text
    assert "#   # keys as in data.train\n" in text
    assert all(name in text for names in REGISTRY.values() for name in names)
    assert "\n#   {name: uwo, weight: REQUIRED, ddof: 0}\n" in text
    assert "\n#   {stage: lsc, quantile: 0.85, empirical: false, floor: null}\n" in text
    assert "\n#   {stage: overlong, margin: REQUIRED, penalty: REQUIRED}\n" in text
    assert "\n#   {name: repetition, n: 20}\n" in text and "\n#   factor\n" in text
