"""The sections that jobs share: one pydantic model each, unknown keys refused.

Each job has its own file beside: `reward_model`, `ppo` (with `policy` and `rewards`), `best_of_n`,
`judging` (evaluate, study, curate), `overoptimization`, `serve`.

Sizes are in tokens unless a name says otherwise; rates are per optimizer step; memory in GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Workers or machines of one kind: each gets a bundle of its own in the plan.
Count = Annotated[int, Field(gt=0, le=4096)]
# Of a folder, to which a run adds endings.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
# Of sampling. vLLM refuses what is above; for what is below it takes 0.01 without a word, while the
# learner goes by the config.
Temperature = Annotated[float, Field(ge=0.01, le=2)]
# Ray counts CPUs and GPUs in ten-thousandths; a worker with no CPU at all could be packed without
# limit.
LEAST_SHARE = 1e-4
Cpus = Annotated[float, Field(ge=LEAST_SHARE)]
# "auto": bfloat16 where the hardware multiplies it (GPUs, CPUs with AVX512-BF16 or AMX), float32
# elsewhere; emulated bfloat16 is three to ten times slower than float32.
Dtype = Literal["auto", "bfloat16", "float32"]


def _a_path(text: str) -> str:
    """Refuse what no file system takes, before something looks for it there."""
    if not text.strip():
        raise ValueError("an empty path")
    if len(text.encode()) > 4000 or max(len(part.encode()) for part in text.split("/")) > 255:
        raise ValueError("longer than a path can be")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user with a home folder") from None
    return text


# A file or folder, or what may stand in its place: a hub id, a pattern, a function's name.
PathText = Annotated[str, AfterValidator(_a_path)]


class Section(BaseModel):
    """A part of a config: no unknown keys, no numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:
        if info.field_name is not None and _holds_truth(given):
            kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise ValueError("expected a number, got true/false")
        return given


def _holds_truth(given: Any) -> bool:
    """Whether it is true or false, or a list or mapping with such a value."""
    if isinstance(given, dict):
        return any(map(_holds_truth, given.values()))
    if isinstance(given, list | tuple):
        return any(map(_holds_truth, given))
    return isinstance(given, bool)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a field's value is made of, of a literal that of each value."""
    parts = get_args(annotation)
    if not parts:
        yield annotation if isinstance(annotation, type) else type(annotation)
    for part in parts:
        yield from _kinds(part)


class Lora(Section):
    """Low-rank adapters (PEFT). `null` in place of this section trains all weights."""

    rank: Positive = 16
    """Rank r of the adapter matrices."""
    alpha: Positive = 32
    """LoRA scaling: an adapter counts alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout probability at the input of the adapters."""
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    """Names of the linear layers that get adapters."""
    last_layers: Positive | None = None
    """Adapters in the last so many layers only: the backward pass ends there. null: in all."""


class Head(Section):
    """Scalar head on the last hidden state: one linear map, or one hidden ReLU layer."""

    kind: Literal["linear", "mlp"] = "linear"
    """One linear map, or an MLP with one hidden layer."""
    hidden: Positive = 1024
    """Width of the hidden layer of an MLP."""
    bias: bool = False
    """Of a linear head: transformers' sequence classification has none. An MLP has its biases."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability at the input of the head."""
    attributes: list[str] = []
    """Several outputs, one an attribute (HelpSteer2): the names of the label columns, and what each
    adds to the one score that pairs are compared by. None: one output, which is the score."""
    weights: list[float] = []
    """One an attribute."""
    members: Annotated[int, Field(gt=0, le=1024)] = 1
    """An ensemble on one backbone: so many scores, each trained on pairs drawn anew (a bootstrap);
    pairs are compared by their mean."""

    @model_validator(mode="after")
    def _members_score_and_attributes_describe(self) -> Head:
        if self.members > 1 and self.attributes:
            raise ValueError(
                "members: each member gives one score, so that they cannot be combined with "
                "attributes"
            )
        return self

    @model_validator(mode="after")
    def _one_weight_an_attribute(self) -> Head:
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes: a name is listed twice")
        if len(self.weights) != len(self.attributes):
            raise ValueError(
                f"weights: {len(self.weights)} for {len(self.attributes)} attributes; give "
                "one per attribute"
            )
        return self


class Model(Section):
    """`path`: a folder, a Hugging Face hub id, or `smollm2-135m-instruct` (the embedded model)."""

    path: PathText
    dtype: Dtype = "auto"
    """Number format of weights and activations; auto: bfloat16 where the hardware supports it."""
    lora: Lora | None = None
    """Low-rank adapters; null: all weights are trained."""
    frozen: bool = False
    """Only the head learns, on the hidden states of the model as it is."""
    gradient_checkpointing: bool = False
    """Hidden states are computed again in the backward pass: less memory, more time."""
    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run here."""

    @model_validator(mode="after")
    def _frozen_has_nothing_to_adapt(self) -> Model:
        if self.frozen and (self.lora is not None or self.gradient_checkpointing):
            raise ValueError("frozen: true cannot be combined with lora or gradient_checkpointing")
        return self


Format = Literal[
    "trl",
    "columns",
    "unified_feedback",
    "preference_700k",
    "helpsteer2",
    "helpsteer2_preference",
    "hh_rlhf",
    "hhh_alignment",
    "mt_bench_human",
    "mt_bench_human_authors",
    "reward_bench",
    "reward_bench_2",
    "rm_bench",
    "reward_math",
]


class Source(Section):
    """Rows to read. `path`: a .jsonl(.gz)/.json/.parquet/.arrow file, a folder or a pattern of
    such (`data/train-*.parquet`), a hub data set, or `demo`.

    `format`: `trl` (columns `chosen` and `rejected`, `prompt` explicit or implicit), `columns` (the
    same under other names, given in `columns`), or a data set with columns of its own
    (`data.adapters`).
    """

    path: PathText
    format: Format = "trl"
    columns: dict[
        Literal["prompt", "chosen", "rejected", "margin", "label_smoothing", "subset"], str
    ] = {}
    """Format `columns`: our name -> the file's, for prompt, chosen, rejected, and where there are
    such columns margin, label_smoothing, subset."""
    split: str = "train"
    """Of a hub data set, or of rows with a column `split`."""
    subset: str | None = None
    """Configuration of a hub data set; null: its default one."""
    where: dict[str, Any] = {}
    """Only the rows whose columns have these values."""
    max_characters: Positive | None = None
    """Of prompt and longest answer together, or of a prompt without answers; what is longer does
    not count towards `limit`."""
    limit: Positive | None = None
    """At most so many rows."""
    pairs_per_prompt: Positive | None = None
    """At most so many pairs of one prompt; which ones, the seed says."""
    shuffle: bool = True
    """False: in the order of the files, every epoch."""

    @field_validator("where")
    @classmethod
    def _where_names_plain_values(cls, where: dict[str, Any]) -> dict[str, Any]:
        odd = [name for name, value in where.items() if not isinstance(value, str | int | float)]
        if odd:
            raise ValueError(f"{', '.join(odd)}: a value must be text, a number, true or false")
        return where

    @model_validator(mode="after")
    def _columns_have_their_format(self) -> Source:
        if (self.format == "columns") != bool(self.columns):
            raise ValueError(
                "format: columns needs the key columns, and the key columns needs format: columns"
            )
        if self.format == "columns" and not {"chosen", "rejected"} <= set(self.columns):
            raise ValueError("columns: needs at least chosen and rejected")
        return self


def of_prompts(source: Source | None, *unread: str) -> Source | None:
    """A source of prompts, whose `unread` keys nobody reads, nor those of pairs.

    Raises:
        ValueError: one of them is set in vain.
    """
    for key in ("pairs_per_prompt", *unread):
        if source is not None and getattr(source, key) != Source.model_fields[key].default:
            raise ValueError(f"{key}: a source of prompts does not use it here; leave it out")
    return source


class PairSource(Source):
    """Training pairs: a source in a mixture.

    `weight`: how often an epoch sees each row; 0.5 is another half every epoch, 2 is twice.
    `flip`: share of pairs whose two answers change places (label noise, for experiments).
    """

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    flip: Fraction = 0.0


class Workers(Section):
    """Worker actors of one role. `count`: how many. `cpus` and `gpus`: what Ray reserves for each;
    gpus may be a part of one. `threads`: CPU threads of each, whatever `cpus` is.
    """

    count: Count = 1
    cpus: Cpus = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Positive = 1

    @field_validator("gpus")
    @classmethod
    def _a_part_of_one_gpu_or_whole_ones(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"must be a part of one GPU (0.5) or whole GPUs (2), not {gpus:g}")
        if 0 < gpus < LEAST_SHARE:
            raise ValueError(
                f"must be 0, or {LEAST_SHARE:g} or more: Ray cannot assign a smaller part of a GPU"
            )
        return gpus


class Optimizer(Section):
    """AdamW under DeepSpeed ZeRO, cosine schedule with linear warm-up."""

    learning_rate: Rate = 1e-5
    """Highest learning rate, reached after the warm-up."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Decay rates of the first and second moments (Adam)."""
    eps: Rate = 1e-8
    """Added to the root of the second moment (Adam epsilon)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW)."""
    warmup_ratio: Fraction = 0.03
    """Share of all updates in which the learning rate rises."""
    minimum_ratio: Fraction = 0.0
    """The learning rate ends at this share of its highest."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this global L2 norm."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What ZeRO splits over ranks: 1 optimizer state, 2 gradients too, 3 weights too; 0:
    nothing."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in the host's memory; "all" (weights too) needs stage 3."""
    tokens_per_micro_batch: Positive = 2048
    """Of one forward and backward pass, rows packed without padding: sets the memory."""

    @model_validator(mode="after")
    def _offload_has_its_stage(self) -> Optimizer:
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload: {self.offload} needs zero_stage {least} or more")
        return self


class Checkpoint(Section):
    """Resumable state every `every` steps (0: never), the newest `keep` of them kept."""

    every: NonNegative = 10
    keep: Positive = 2


class Scoring(Section):
    """How reward models are run: never what comes out, up to rounding."""

    dtype: Dtype = "auto"
    """Number format of weights and activations; auto: bfloat16 where the hardware supports it."""
    tokens_per_micro_batch: Positive = 2048
    """Tokens of one forward pass, rows packed without padding: sets the memory."""


class Job(Section):
    """`job`: which kind of job this is; may be left out."""

    name: Name
    """The run goes to the folder `runs`/`name`."""
    runs: PathText = "runs"
    """Folder in which the folders of runs lie."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of whatever is drawn: order, samples, dropout, what a new head begins with."""
    timeout_s: Positive = 1800
    """Seconds without any sign of life from a worker that is waited for; then the run gives up."""
    tracking: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]
    """Beside metrics.jsonl. W&B and MLflow are to be installed, and find their own keys."""
