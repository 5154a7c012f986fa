"""A reward model scores the same wherever it is read: packed here, in transformers, in vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import load_reward_model, save_reward_model
from grm_ray.models.export import (
    PROBES,
    choose_pad,
    fit_template,
    save_sequence_classification,
    unfit,
)
from tests.conftest import TEMPLATE
from tests.models.scoring import (
    classifier_scores,
    ids,
    packed_scores,
    reward_model,
    templated,
)

ATTRIBUTES = Head(attributes=["help", "facts"], weights=[0.7, -1.5])
VLLM = Path(__file__).parent / "vllm_scores.py"


class Exported:
    """The same model in memory, in a folder of ours, and as a classifier."""

    def __init__(self, tiny_model, folder, head=None, dtype="float32"):
        self.head = head or Head()
        self.tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        # As SmolLM2 has it: padding, end of answer and end of text are one token.
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.contract = ScoringContract.of(self.tokenizer, 512, "left")
        self.model = reward_model(tiny_model, self.head, dtype)
        self.ours, self.folder = folder / "ours", folder / "classifier"
        save_reward_model(
            self.model, self.head, self.tokenizer, self.contract, self.ours, "# ours\n"
        )
        self.differ = save_sequence_classification(
            self.model,
            self.head,
            AutoTokenizer.from_pretrained(self.ours),
            self.contract,
            self.folder,
            lambda differ: "# card\n",
        )
        self.scores = packed_scores(self.model, self.tokenizer, self.contract)
        self.their_tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def classifier(self, dtype=torch.float32):
        return AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=dtype).eval()

    def vllm(self, dtype, folder):
        """Scores by vLLM of what the exported chat template makes."""
        rows, out = folder / "ids.json", folder / "scores.json"
        rows.write_text(json.dumps(templated(self.their_tokenizer)))
        run = subprocess.run(
            [sys.executable, VLLM, self.folder, rows, dtype, out],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        return np.array(json.loads(out.read_text()))


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    return Exported(tiny_model, tmp_path_factory.mktemp("exported"))


def test_scores_spread_far_enough_to_tell_roads_apart(exported):
    assert len(exported.scores) == 64
    assert 0.99 < exported.scores.std() < 1.01
    assert exported.scores.max() > 1 or exported.scores.min() < 0  # a sigmoid would show


def test_our_folder_scores_the_same(exported):
    model, contract, _ = load_reward_model(exported.ours, "float32")
    scores = packed_scores(model, exported.tokenizer, contract)
    np.testing.assert_allclose(scores, exported.scores, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_scores_the_same_on_either_padding(exported, side):
    rows = templated(exported.their_tokenizer)
    assert len({len(row) for row in rows}) > 20  # so that there is padding
    scores = classifier_scores(exported.classifier(), exported.their_tokenizer, rows, side)
    np.testing.assert_allclose(scores, exported.scores, atol=1e-4)


@torch.no_grad()
def test_restarted_positions_change_nothing(exported):
    tokenizer = exported.their_tokenizer
    tokenizer.padding_side = "left"
    batch = tokenizer.pad({"input_ids": templated(tokenizer)[:16]}, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    scores = exported.classifier()(**batch, position_ids=positions).logits[:, 0].numpy()
    np.testing.assert_allclose(scores, exported.scores[:16], atol=1e-4)


def test_vllm_scores_the_same(exported, tmp_path):
    np.testing.assert_allclose(exported.vllm("float32", tmp_path), exported.scores, atol=1e-4)


def test_bfloat16_ranks_the_same(tiny_model, exported, tmp_path):
    model, contract, _ = load_reward_model(exported.ours, "bfloat16")
    roads = {
        "packed": packed_scores(model, exported.tokenizer, contract),
        "transformers": classifier_scores(
            exported.classifier(torch.bfloat16),
            exported.their_tokenizer,
            templated(exported.their_tokenizer),
            "right",
        ),
    }
    for road, scores in roads.items():
        close_in_bfloat16(scores, exported.scores, road)


@pytest.mark.slow
def test_vllm_in_bfloat16_ranks_the_same(exported, tmp_path):
    close_in_bfloat16(exported.vllm("bfloat16", tmp_path), exported.scores, "vLLM")


def close_in_bfloat16(scores, wanted, road):
    assert np.abs(scores - wanted).max() < 0.15, road
    ranks = [values.argsort().argsort() for values in (scores, wanted)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99, road


def test_the_exported_tokenizer_pads_with_another_token_than_the_last(exported):
    assert exported.differ == []
    last = {row[-1] for row in templated(exported.their_tokenizer)}
    assert last == {exported.contract.terminal_token_id}
    assert exported.their_tokenizer.pad_token_id not in last
    config = exported.classifier().config
    assert config.pad_token_id == exported.their_tokenizer.pad_token_id
    assert config.num_labels == 1 and config.problem_type == "regression"


def test_the_exported_template_makes_the_contracts_tokens(exported):
    assert templated(exported.their_tokenizer) == ids(exported.tokenizer, exported.contract)
    # An open conversation is written as ever, so that answers can still be sampled with it.
    for tokenizer in (exported.tokenizer, exported.their_tokenizer):
        opened = tokenizer.apply_chat_template(
            PROBES["several turns"][:-1], add_generation_prompt=True, tokenize=False
        )
        assert opened.endswith("<|end|>\n<|start|>assistant\n")


def test_the_export_can_be_read_back(exported):
    model, contract, _ = load_reward_model(exported.folder, "float32")
    contract.check(exported.their_tokenizer)
    scores = packed_scores(model, exported.their_tokenizer, contract)
    np.testing.assert_allclose(scores, exported.scores, atol=1e-4)


def test_several_attributes_become_their_weighted_sum(tiny_model, tmp_path):
    made = Exported(tiny_model, tmp_path, ATTRIBUTES)
    rows = templated(made.their_tokenizer)
    scores = classifier_scores(made.classifier(), made.their_tokenizer, rows, "right")
    np.testing.assert_allclose(scores, made.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (Head(kind="mlp"), "MLP"),
        (Head(bias=True), "bias"),
        (Head(attributes=["a", "b"], weights=[1, 2], bias=True), "bias"),
    ],
)
def test_a_head_that_is_no_linear_map_is_refused(tiny_model, tmp_path, head, reason):
    assert reason in unfit(head)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    contract = ScoringContract.of(tokenizer, 512, "left")
    with pytest.raises(ValueError, match=reason):
        save_sequence_classification(
            reward_model(tiny_model, head), head, tokenizer, contract, tmp_path / "c", str
        )
    assert not any(tmp_path.iterdir())


def tokenizer_with(tiny_model, template, **special) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


def probes(tokenizer, contract):
    """The contract's tokens of the probes, by the tokenizer as it stands."""
    made = {}
    for name, messages in PROBES.items():
        prompt, (answer,) = contract.tokens(tokenizer, messages[:-1], [messages[-1]["content"]])
        made[name] = prompt + answer
    return made


SPACED = ["an answer that begins with a line break", "an answer that ends with white space"]


@pytest.mark.parametrize(
    ("template", "differ"),
    [
        (TEMPLATE, []),
        (TEMPLATE + "\n", []),
        ("\n" + TEMPLATE, []),
        ("  {% if true %}\n    hello\n{% endif %}\n\n" + TEMPLATE, []),
        # Another sign than eos closes turns, as in Gemma.
        (TEMPLATE.replace("<|end|>", "<turn>"), []),
        # Nothing closes them.
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}", []),
        # Contents are trimmed, as in Llama 3.
        (TEMPLATE.replace("m['content']", "m['content'] | trim"), SPACED),
        # Answers are rewritten: nothing can be done from behind.
        (TEMPLATE.replace("m['content']", "m['content'] | upper"), list(PROBES)),
    ],
)  # fmt: skip
def test_templates_of_many_kinds(tiny_model, template, differ):
    tokenizer = tokenizer_with(tiny_model, template)
    contract = ScoringContract.of(tokenizer, 512, "left")
    wanted = probes(tokenizer, contract)
    rebound, found = fit_template(tokenizer, contract, wanted)
    assert found == differ
    rebound.check(tokenizer)
    assert probes(tokenizer, rebound) == wanted  # with or without the template's help


def test_a_bos_that_comes_twice_is_put_into_the_template(tiny_model):
    tokenizer = tokenizer_with(tiny_model, "{{ bos_token }}" + TEMPLATE)
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    contract = ScoringContract.of_template(tokenizer, 512, special_tokens_twice=True)
    wanted = probes(tokenizer, contract)
    rebound, differ = fit_template(tokenizer, contract, wanted)
    assert differ == [] and not rebound.special_tokens_twice
    said = tokenizer.apply_chat_template(PROBES["one question"], return_dict=False)
    assert said == wanted["one question"] and said[:2] == [tokenizer.bos_token_id] * 2


def test_a_template_that_knows_no_system_message_is_no_reason_to_stop(tiny_model, tmp_path):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    ) + TEMPLATE
    tokenizer = tokenizer_with(tiny_model, template)
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, Head())
    folder = tmp_path / "c"
    assert not save_sequence_classification(model, Head(), tokenizer, contract, folder, str)


def test_pad_tokens_are_chosen_among_what_is_there(tiny_model):
    tokenizer = tokenizer_with(tiny_model, TEMPLATE)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert choose_pad(tokenizer, {end}) == pad  # its own
    tokenizer.pad_token = tokenizer.eos_token
    assert choose_pad(tokenizer, {end}) == pad and tokenizer.pad_token == "<|pad|>"
    # What the template writes is not free.
    tokenizer = tokenizer_with(tiny_model, TEMPLATE + "<|pad|>", pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|fim|>", "<|reserved_7|>"]})
    choose_pad(tokenizer, {end})
    assert tokenizer.pad_token == "<|reserved_7|>"


def test_a_new_pad_token_gets_a_row_of_its_own(tiny_model, tmp_path):
    tokenizer = tokenizer_with(tiny_model, TEMPLATE + "{# <|pad|> #}", pad_token="<|end|>")
    contract = ScoringContract.of(tokenizer, 512, "left")
    model = reward_model(tiny_model, Head())
    scores = packed_scores(model, tokenizer, contract)
    save_sequence_classification(model, Head(), tokenizer, contract, tmp_path / "c", str)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "c")
    vocabulary = exported.get_input_embeddings().num_embeddings
    assert tokenizer.pad_token_id == vocabulary - 1 == model.lm.config.vocab_size
    found = classifier_scores(exported, tokenizer, templated(tokenizer), "right")
    np.testing.assert_allclose(found, scores, atol=1e-4)
