"""Weights in pickles are refused wherever a model is named, with the way to convert them."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Model
from grm_ray.models import backbone
from grm_ray.models.checkpoint import load_reward_model


@pytest.fixture
def pickled(tmp_path, tiny_model):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(
        AutoModelForCausalLM.from_pretrained(tiny_model).state_dict(), folder / "pytorch_model.bin"
    )
    return folder


def test_a_pickle_is_refused_with_the_way_to_convert_it(pickled):
    for read in (backbone.resolve, load_reward_model):
        with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*can run any code") as refused:
            read(str(pickled))
    command = str(refused.value).split('"')[1]
    exec(compile(command, "as the message says", "exec"), {})  # noqa: S102 - it is to work
    assert backbone.resolve(str(pickled)) == str(pickled)
    backbone.load_causal_lm(Model(path=str(pickled), dtype="float32"))


def test_safetensors_beside_a_pickle_are_what_is_read(pickled, tiny_model):
    shutil.copy(tiny_model / "model.safetensors", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"no pickle at all")
    backbone.load_causal_lm(Model(path=str(pickled), dtype="float32"))
