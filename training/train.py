"""Trains rill on the CPU or on a GPU: `python -m training.train --help`.

On the CPU each worker process runs one thread on its own share of every batch, and the gradients
are averaged. On a busy machine this is much faster than threads that wait for each other in every
matrix product. On a GPU (`--device cuda`) there is one worker. It takes larger steps, and computes
in bfloat16 while the weights stay in float32.
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
WARMUP = 0.02
STABLE_UNTIL = 0.5
SHORT_LENGTH = 256
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0
LOG_EVERY_S = 10.0
CHECKPOINT_EVERY_S = 240.0
QUICK_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """What suits a device. A GPU is fast enough to take long sequences early."""

    tokens_per_step: int
    """The tokens of each worker's share of a step."""
    peak_rate: float
    full_context_from: float
    """The progress (0..1) at which the sequences become long."""


PACES = {
    "cpu": Pace(tokens_per_step=4096, peak_rate=3e-3, full_context_from=0.6),
    "cuda": Pace(tokens_per_step=65_536, peak_rate=3e-3, full_context_from=0.2),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of the command line."""

    minutes: float
    device: str
    workers: int
    corpus_tokens: int
    folder: Path
    kind: Kind | None
    resume: bool
    compile: bool


def learning_rate(progress: float, peak: float) -> float:
    """Return the rate at `progress` 0..1: it warms up, stays, then falls linearly to zero."""
    if progress < WARMUP:
        return peak * (progress / WARMUP + 0.01)
    if progress < STABLE_UNTIL:
        return peak
    return peak * max(0.0, (1 - progress) / (1 - STABLE_UNTIL))


def on_device(tokens: Tokens, device: str) -> Tensor:
    """Copy token ids to the device. PyTorch computes little with 16 unsigned bits, so as 32."""
    return torch.from_numpy(tokens.astype(np.int32)).to(device)


def take_batch(corpus: Tensor, cursor: int, num_tokens: int, length: int) -> Tensor:
    """Return the sequences that start `cursor` tokens into the corpus, each with the next token."""
    start = cursor % (len(corpus) - num_tokens)
    return corpus[start : start + num_tokens + 1].unfold(0, length + 1, length).long()


def average_gradients(model: Llama, workers: int) -> None:
    if workers == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / workers, gradients)


def held_out_loss(model: Llama, tokens: Tensor, max_sequences: int | None = None) -> float:
    """Return the mean loss in nats per token over sequences of the full context."""
    length = model.shape.context
    rows = (len(tokens) - 1) // length
    losses: list[float] = []
    with torch.no_grad():
        for row in range(min(rows, max_sequences or rows)):
            sequence = tokens[row * length : (row + 1) * length + 1].long()
            losses.append(float(model.loss(sequence[None]).item()))
    return sum(losses) / len(losses)


def machine(device: str) -> str:
    """Return the name of the GPU, or of the processor if the system provides it."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'an unnamed processor'}, {os.cpu_count()} cores"


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
        self.pace = PACES[plan.device]
        corpus = train_tokens(tokenizer, plan.folder, plan.corpus_tokens, plan.kind)
        self.corpus = on_device(corpus, plan.device)
        held_out = held_out_tokens(tokenizer) if rank == 0 else {}
        self.held_out = {kind: on_device(ids, plan.device) for kind, ids in held_out.items()}
        torch.manual_seed(SEED)
        self.model = Llama(Shape(vocabulary=tokenizer.get_vocab_size())).to(plan.device)
        decayed = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": others},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.pace.peak_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.steps = 0
        self.elapsed_s = 0.0
        self.tokens_seen = 0
        if plan.resume:
            self._resume()
        compiled = torch.compile(self.model.loss, dynamic=False)
        self.loss = compiled if plan.compile else self.model.loss

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
            if self.elapsed_s - last_log[0] > LOG_EVERY_S:
                now_s = time.monotonic() - begin
                speed = (self.tokens_seen - last_log[1]) / (now_s - last_log[0])
                self.log(loss=round(float(loss.item()), 4), tokens_per_s=round(speed))
                last_log = (now_s, self.tokens_seen)
            if self.elapsed_s - last_save > CHECKPOINT_EVERY_S:
                self.save(QUICK_SEQUENCES)
                last_save = self.elapsed_s
        self.save(None)

    def step(self, progress: float) -> Tensor:
        """Update the weights once, and return this worker's loss in nats.

        A GPU computes it later: to ask for its value is to wait.
        """
        rate = learning_rate(progress, self.pace.peak_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        is_short = progress < self.pace.full_context_from
        length = SHORT_LENGTH if is_short else self.model.shape.context
        share = self.pace.tokens_per_step
        batch = take_batch(self.corpus, self.tokens_seen + self.rank * share, share, length)
        with torch.autocast(self.plan.device, torch.bfloat16, enabled=self.plan.device == "cuda"):
            loss: Tensor = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        average_gradients(self.model, self.plan.workers)
        clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.steps += 1
        self.tokens_seen += share * self.plan.workers
        return loss.detach()

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
        self.log(
            held_out=losses,
            sequences_per_kind=max_sequences or "all",
            machine=machine(self.plan.device),
            corpus_tokens=self.plan.corpus_tokens,
        )
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
        "--device", choices=list(PACES), default="cpu", help="what computes (default: cpu)"
    )
    parser.add_argument(
        "--workers", type=int, help="processes (default: one per core; a GPU has one)"
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
    options = parser.parse_args()
    most = 1 if options.device == "cuda" else os.cpu_count() or 1
    options.workers = options.workers or most
    plan = Plan(**vars(options))
    if plan.device == "cuda" and plan.workers > 1:
        parser.error("a GPU has one worker")
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
