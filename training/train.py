"""Trains rill on the CPU: `python -m training.train --help`.

Each worker process runs one thread on its own share of every batch, and the gradients are averaged.
On a busy machine this is much faster than threads that wait for each other in every matrix product.
The schedule follows the clock, so that a run ends on time: short sequences first, then the full
context, while the learning rate falls to zero.
"""
# PyTorch is not in the development environment, where mypy would find its ignores unused.
# mypy: warn-unused-ignores=False

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from training.corpus import Tokens, held_out_tokens, train_tokens
from training.model import Llama
from training.shape import BUILD, Shape
from training.text.document import Kind

SEED = 7
PEAK_RATE = 3e-3
WARMUP = 0.02
STABLE_UNTIL = 0.5
FULL_CONTEXT_FROM = 0.6
SHORT_LENGTH = 256
TOKENS_PER_STEP_AND_WORKER = 4096
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0
LOG_EVERY_STEPS = 20
CHECKPOINT_EVERY_S = 240.0
QUICK_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of the command line."""

    minutes: float
    workers: int
    corpus_tokens: int
    folder: Path
    kind: Kind | None
    resume: bool
    compile: bool


def learning_rate(progress: float) -> float:
    """Return the rate at `progress` 0..1: it warms up, stays, then falls linearly to zero."""
    if progress < WARMUP:
        return PEAK_RATE * (progress / WARMUP + 0.01)
    if progress < STABLE_UNTIL:
        return PEAK_RATE
    return PEAK_RATE * max(0.0, (1 - progress) / (1 - STABLE_UNTIL))


def sequence_length(progress: float, context: int) -> int:
    return SHORT_LENGTH if progress < FULL_CONTEXT_FROM else context


def take_batch(tokens: Tokens, cursor: int, length: int) -> Tensor:
    """Return the sequences that start `cursor` tokens into the corpus, each with the next token."""
    rows = TOKENS_PER_STEP_AND_WORKER // length
    starts = [(cursor + row * length) % (len(tokens) - length - 1) for row in range(rows)]
    batch = np.stack([tokens[start : start + length + 1] for start in starts])
    return torch.from_numpy(batch.astype(np.int64))


def average_gradients(model: Llama, workers: int) -> None:
    if workers == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / workers, gradients)


def held_out_loss(model: Llama, tokens: Tokens, max_sequences: int | None = None) -> float:
    """Return the mean loss in nats per token over sequences of the full context."""
    length = model.shape.context
    rows = (len(tokens) - 1) // length
    losses: list[float] = []
    with torch.no_grad():
        for row in range(min(rows, max_sequences or rows)):
            sequence = tokens[row * length : (row + 1) * length + 1].astype(np.int64)
            losses.append(float(model.loss(torch.from_numpy(sequence)[None]).item()))
    return sum(losses) / len(losses)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a new file and rename it, so that an interruption leaves a complete checkpoint."""
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


def load_model(path: Path) -> tuple[Llama, dict[str, Any]]:
    """Read a checkpoint, and return the model and the whole saved state."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model = Llama(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model, state


class Worker:
    """A process of the run. The process with rank 0 also measures, logs and saves."""

    def __init__(self, rank: int, plan: Plan) -> None:
        self.rank = rank
        self.plan = plan
        self.checkpoint = plan.folder / "checkpoint.pt"
        tokenizer = Tokenizer.from_file(str(plan.folder / "tokenizer.json"))
        self.corpus = train_tokens(tokenizer, plan.folder, plan.corpus_tokens, plan.kind)
        self.held_out = held_out_tokens(tokenizer) if rank == 0 else {}
        torch.manual_seed(SEED)
        self.model = Llama(Shape(vocabulary=tokenizer.get_vocab_size()))
        decayed = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": others},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=PEAK_RATE,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.steps = 0
        self.elapsed_s = 0.0
        self.tokens_seen = 0
        if plan.resume:
            self._resume()
        self.loss = torch.compile(self.model.loss) if plan.compile else self.model.loss

    def _resume(self) -> None:
        _, state = load_model(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.elapsed_s = state["steps"], state["elapsed_s"]
        self.tokens_seen = state["tokens_seen"]

    def train(self) -> None:
        limit_s = self.plan.minutes * 60
        begin = time.monotonic() - self.elapsed_s
        last_log, last_save = (self.elapsed_s, self.tokens_seen), self.elapsed_s
        while True:
            self.elapsed_s = self._agree(time.monotonic() - begin)
            if self.elapsed_s >= limit_s:
                break
            loss = self.step(self.elapsed_s / limit_s)
            if self.steps % LOG_EVERY_STEPS == 0:
                now_s = time.monotonic() - begin
                speed = (self.tokens_seen - last_log[1]) / (now_s - last_log[0])
                self.log(loss=round(loss, 4), tokens_per_s=round(speed))
                last_log = (now_s, self.tokens_seen)
            if self.elapsed_s - last_save > CHECKPOINT_EVERY_S:
                self.save(QUICK_SEQUENCES)
                last_save = self.elapsed_s
        self.save(None)

    def step(self, progress: float) -> float:
        """Update the weights once, and return this worker's loss in nats."""
        rate = learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        length = sequence_length(progress, self.model.shape.context)
        cursor = self.tokens_seen + self.rank * TOKENS_PER_STEP_AND_WORKER
        loss: Tensor = self.loss(take_batch(self.corpus, cursor, length))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        average_gradients(self.model, self.plan.workers)
        clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.steps += 1
        self.tokens_seen += TOKENS_PER_STEP_AND_WORKER * self.plan.workers
        return float(loss.item())

    def _agree(self, elapsed_s: float) -> float:
        """Return the first worker's clock, so that all workers stop after the same step."""
        clock = torch.tensor([elapsed_s], dtype=torch.float64)
        if self.plan.workers > 1:
            dist.broadcast(clock, src=0)
        return float(clock.item())

    def save(self, max_sequences: int | None) -> None:
        if self.rank != 0:
            return
        losses = {
            kind.value: round(held_out_loss(self.model, tokens, max_sequences), 4)
            for kind, tokens in self.held_out.items()
        }
        self.log(held_out=losses, sequences_per_kind=max_sequences or "all")
        save_checkpoint(
            self.checkpoint,
            {
                "shape": asdict(self.model.shape),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "steps": self.steps,
                "elapsed_s": self.elapsed_s,
                "tokens_seen": self.tokens_seen,
                "corpus_tokens": self.plan.corpus_tokens,
                "held_out": losses,
            },
        )

    def log(self, **facts: object) -> None:
        if self.rank != 0:
            return
        record = {
            "step": self.steps,
            "minutes": round(self.elapsed_s / 60, 2),
            "tokens": self.tokens_seen,
            **facts,
        }
        print(json.dumps(record), flush=True)
        with (self.plan.folder / "train.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def run_worker(rank: int, plan: Plan, meeting: str) -> None:
    torch.set_num_threads(1)
    if plan.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.workers
        )
    Worker(rank, plan).train()
    if plan.workers > 1:
        dist.destroy_process_group()


def read_plan() -> Plan:
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description="Train rill and save checkpoints in --folder."
    )
    parser.add_argument("--minutes", type=float, default=60, help="wall time (default: 60)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="number of processes (default: one per core)",
    )
    parser.add_argument(
        "--corpus-tokens", type=int, default=16_000_000, help="tokens to generate (default: 16M)"
    )
    parser.add_argument(
        "--folder", type=Path, default=BUILD, help="the training folder (default: %(default)s)"
    )
    parser.add_argument(
        "--kind", type=Kind, choices=list(Kind), help="only this kind of text (default: all)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile (faster; needs a C++ compiler)"
    )
    plan = Plan(**vars(parser.parse_args()))
    if not (plan.folder / "tokenizer.json").exists():
        parser.error(f"{plan.folder} has no tokenizer.json: run `python -m training.tokenizer`")
    if plan.resume and not (plan.folder / "checkpoint.pt").exists():
        parser.error(f"{plan.folder} has no checkpoint.pt to resume from")
    return plan


def main() -> None:
    plan = read_plan()
    tokenizer = Tokenizer.from_file(str(plan.folder / "tokenizer.json"))
    train_tokens(tokenizer, plan.folder, plan.corpus_tokens, plan.kind)
    if plan.workers == 1:
        run_worker(0, plan, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        spawn(run_worker, (plan, meeting), plan.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
