"""TRL's RLOOTrainer on the work of `rl_step.py`; runs in `.venv-bench`, prints one JSON line."""

import json
import sys

import torch
from clock import Clock
from datasets import Dataset
from peft import LoraConfig
from trl import RLOOConfig, RLOOTrainer


def main():
    work = json.loads(sys.argv[1])
    torch.set_num_threads(work["threads"])
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    clock = Clock()
    config = RLOOConfig(
        output_dir=work["output"],
        per_device_train_batch_size=work["rows"],
        num_generations=work["samples_per_prompt"],
        max_completion_length=work["new_tokens"],
        max_steps=work["steps"],
        beta=0.05,
        temperature=1.0,
        learning_rate=work["learning_rate"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = RLOOTrainer(
        model=work["policy"],
        reward_funcs=work["reward"],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": p} for p in work["prompts"]]),
        peft_config=adapter if work["lora"] else None,
        callbacks=[clock],
    )
    trainer.train()
    lengths = [
        row["completions/mean_length"]
        for row in trainer.state.log_history
        if "completions/mean_length" in row
    ]
    print(json.dumps({"seconds": clock.seconds, "lengths": lengths}))


if __name__ == "__main__":
    main()
