"""TRL's RewardTrainer on the work of `rm_training.py`; runs in `.venv-bench`, prints JSON."""

import json
import sys

import torch
from clock import Clock
from datasets import Dataset
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main():
    work = json.loads(sys.argv[1])
    torch.set_num_threads(work["threads"])
    with open(work["rows"], encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    clock = Clock()
    config = RewardConfig(
        output_dir=work["output"],
        per_device_train_batch_size=work["pairs_per_step"],
        max_length=work["max_length"],
        num_train_epochs=1,
        max_steps=work["steps"],
        learning_rate=1e-5,
        use_cpu=True,
        bf16=work["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"dtype": work["dtype"]},
    )
    trainer = RewardTrainer(
        model=work["model"],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
        callbacks=[clock],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(
        json.dumps({"seconds": clock.seconds, "losses": losses, "rows": len(trainer.train_dataset)})
    )


if __name__ == "__main__":
    main()
