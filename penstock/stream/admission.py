"""Admission: which request gets a slot now, which may wait, and which of the waiting comes next.

Admission is a pure object: requests come in as tickets, the time is an argument, and tickets come
out, one for each free slot. It knows nothing about streams, engines, HTTP, clocks or tasks.

The queue is fair between owners (an API key, or a client's address), not between requests.

- A ticket's *work* is its tokens of prompt and answer (`TOKENS_OF_NOTHING` if it has none), plus
  `TOKENS_PER_SECOND` for each second in its slot. So tokenising, compiling a schema and reading a
  prompt count, whether a request ends well, is refused or is cancelled.
- An owner's *level* is the work that it has been served. The next slot goes to the waiting owner
  with the lowest level, and within an owner to its oldest ticket. A running ticket counts with its
  work so far, but at least with the average work of a ticket: otherwise an owner would get every
  free slot before its first token is counted.
- An owner that arrives starts at the lowest level of the waiting owners, or at its own if it is
  higher. So it neither saves up unused turns nor waits for what others used before it came.
- If the engine has several *models*, a model may have a bound of its own (`bounds`): its running
  tickets are at most so many, together with its cancelled ones that an engine still works on. A
  ticket whose model has no free slot is passed over, so that a busy model, or one that is away,
  cannot take the slots of the others. Its place in the queue counts only tickets of its own model.
- A *newcomer* is an owner that arrives while it has nothing running and nothing waiting, unless its
  own level is ahead of that lowest level by more than the average work of a ticket. Its first
  ticket goes before the tickets of all others; several newcomers start in the order of arrival.

(The idea is virtual time in fair queueing, and the virtual token counter:
https://arxiv.org/abs/2401.00588.)
"""

import collections
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# What a second in a slot costs, in tokens: about the speed of an answer, and nothing that a client
# could change by the requests that it sends.
TOKENS_PER_SECOND = 100
# What a ticket without tokens costs, also one that leaves the queue without a slot.
TOKENS_OF_NOTHING = 16
# The latest tickets that gave back a slot show what a ticket costs and how long it takes.
NUM_REMEMBERED = 64
MAX_LEVELS_KNOWN = 10_000
MAX_RETRY_AFTER_S = 600
MAX_QUEUE_BYTES = 256 * 1024 * 1024
UNREAD = "\0unread"
"""The model of requests that nobody can read yet (see `unread`). It has no slots, and no model has
this name."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request, as admission sees it.

    `tokens` returns how many tokens of prompt and answer it has had. `max_tokens` is its assumed
    work until other tickets have shown what one costs. `num_bytes` is its memory while it waits.
    `model` is the model that it asks for, "" if the engine has one. `is_newcomer` is True for the
    first ticket of a newcomer.
    """

    id: str
    owner: str
    max_tokens: int
    tokens: Callable[[], int] = lambda: 0
    num_bytes: int = 0
    model: str = ""
    number: int = 0
    started_at: float = 0.0
    is_newcomer: bool = False

    def work(self, now: float) -> float:
        """Return what the ticket has cost so far, in tokens, while it has a slot."""
        tokens = self.tokens() or TOKENS_OF_NOTHING
        return tokens + TOKENS_PER_SECOND * (now - self.started_at)


@dataclass(frozen=True)
class Place:
    """A place among the tickets of a model; `position` 1 is next. `eta` is the wait in seconds."""

    position: int
    eta: float | None


@dataclass
class _Owner:
    served: float
    waiting: collections.OrderedDict[str, Ticket] = field(default_factory=collections.OrderedDict)
    running: dict[str, Ticket] = field(default_factory=dict)


class Admission:
    """Gives `num_slots` slots (0: no limit) to a queue of `max_queue` tickets in
    `max_queue_bytes` of memory.

    When one owner has filled the queue, other owners may still wait, each up to its share; the
    queue never grows beyond twice its limits. So one owner's flood keeps nobody else out, and no
    admitted ticket is removed again.
    """

    def __init__(
        self, num_slots: int = 0, max_queue: int = 1024, max_queue_bytes: int = MAX_QUEUE_BYTES
    ) -> None:
        self.num_slots = num_slots
        self.bounds: dict[str, int] = {}
        """The most running tickets of each model. Empty if the engine has one model."""
        self.num_stopping_of: Callable[[str], int] = lambda model: 0
        """Returns how many cancelled requests for a model the engines still work on."""
        self.default_model = ""
        """The model of requests that name none."""
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._owners: dict[str, _Owner] = {}
        # Levels of owners that left while others stayed; kept until all owners have left.
        self._levels: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._owner_of: dict[str, str] = {}
        self._num_entered = 0
        self._num_running = 0
        self._num_waiting = 0
        self._num_bytes = 0
        self._running_of: collections.defaultdict[str, int] = collections.defaultdict(int)
        self._waiting_of: collections.defaultdict[str, int] = collections.defaultdict(int)
        # Between two changes the time stands still, so that places and turns agree.
        self._now = 0.0
        self._costs: collections.deque[float] = collections.deque(maxlen=NUM_REMEMBERED)
        self._holds: collections.deque[float] = collections.deque(maxlen=NUM_REMEMBERED)

    @property
    def num_running(self) -> int:
        """Return how many tickets have a slot."""
        return self._num_running

    @property
    def num_waiting(self) -> int:
        """Return how many tickets are in the queue."""
        return self._num_waiting

    def would_start(self, model: str = "") -> bool:
        """Return True if a new ticket would get a slot at once, if an engine can start it."""
        # If tickets wait although a slot is free, they are held back, and so is this one.
        if self.bounds:
            return not self._waiting_of[model] and self._has_free_slot(model)
        # Nearly every server: no further call.
        return not self._num_waiting and not 0 < self.num_slots <= self._num_running

    def has_room(self, owner: str, num_bytes: int = 0, model: str | None = None) -> bool:
        """Return True if a ticket of this owner would get a slot or a place in the queue.

        With `model` None, it is not known yet for which model the ticket will be.
        """
        if model is None and self.bounds:
            if any(map(self.would_start, self.bounds)):
                return True
        elif self.would_start(model or ""):
            return True
        fill = (self._num_waiting + 1, self._num_bytes + num_bytes)
        limits = (self._max_queue, self._max_queue_bytes)
        if all(new <= limit for new, limit in zip(fill, limits, strict=True)):
            return True
        if any(new > 2 * limit for new, limit in zip(fill, limits, strict=True)):
            return False
        others = sum(1 for name, each in self._owners.items() if each.waiting and name != owner)
        mine = self._owners[owner].waiting.values() if owner in self._owners else ()
        theirs = (len(mine) + 1, sum(ticket.num_bytes for ticket in mine) + num_bytes)
        return all(new <= limit // (others + 1) for new, limit in zip(theirs, limits, strict=True))

    def enter(self, ticket: Ticket, now: float, *, can_start: bool = True) -> bool:
        """Take a ticket for which there is room; return True if it has a slot, False if it waits.

        `can_start` is False if the free slots belong to engines that cannot take a request now.
        """
        self._now = now
        owner = self._owners.get(ticket.owner)
        if owner is None:
            own, lowest = self._levels.pop(ticket.owner, 0.0), self._lowest_level()
            owner = self._owners[ticket.owner] = _Owner(max(own, lowest))
            ticket.is_newcomer = own <= lowest or own <= lowest + self._expected_cost()
        self._num_entered += 1
        ticket.number = self._num_entered
        self._owner_of[ticket.id] = ticket.owner
        if can_start and self.would_start(ticket.model):
            self._start(owner, ticket, now)
            return True
        owner.waiting[ticket.id] = ticket
        self._num_waiting += 1
        self._waiting_of[ticket.model] += 1
        self._num_bytes += ticket.num_bytes
        return False

    def enter_first(self, ticket: Ticket, now: float) -> None:
        """Let a ticket wait before all others: its request had begun elsewhere."""
        self._now = now
        owner = self._owners.get(ticket.owner)
        if owner is None:
            level = max(self._levels.pop(ticket.owner, 0.0), self._lowest_level())
            owner = self._owners[ticket.owner] = _Owner(level)
        ticket.is_newcomer = True
        self._owner_of[ticket.id] = ticket.owner
        owner.waiting[ticket.id] = ticket
        owner.waiting.move_to_end(ticket.id, last=False)
        self._num_waiting += 1
        self._waiting_of[ticket.model] += 1
        self._num_bytes += ticket.num_bytes

    def next(self, now: float) -> Ticket | None:
        """Give a free slot to the next ticket; return None if there is no slot or no ticket."""
        if not self._num_waiting or (self.num_slots and self._num_running >= self.num_slots):
            return None
        self._now = now
        heads = self._heads()
        if not heads:
            return None
        turn = self._turn_of()
        owner, ticket = min(heads, key=lambda head: turn(*head))
        del owner.waiting[ticket.id]
        self._num_waiting -= 1
        self._waiting_of[ticket.model] -= 1
        self._num_bytes -= ticket.num_bytes
        self._start(owner, ticket, now)
        return ticket

    def _heads(self) -> list[tuple[_Owner, Ticket]]:
        """Return each owner's oldest ticket that waits and could start now."""
        waiting = [owner for owner in self._owners.values() if owner.waiting]
        if not self.bounds:
            return [(owner, next(iter(owner.waiting.values()))) for owner in waiting]
        free = {name for name, num in self._waiting_of.items() if num and self._has_free_slot(name)}
        if not free:  # often: do not look at the whole queue
            return []
        heads = []
        for owner in waiting:
            head = next((each for each in owner.waiting.values() if each.model in free), None)
            if head is not None:
                heads.append((owner, head))
        return heads

    def leave(self, ticket_id: str, now: float) -> bool:
        """Give back a slot or a place in the queue; return True if it was a slot.

        An unknown id is ignored.
        """
        self._now = now
        name = self._owner_of.pop(ticket_id, None)
        if name is None:
            return False
        owner = self._owners[name]
        ticket = owner.running.pop(ticket_id, None)
        if ticket is not None:
            work = ticket.work(now)
            self._num_running -= 1
            self._running_of[ticket.model] -= 1
            owner.served += work
            self._costs.append(work)
            self._holds.append(now - ticket.started_at)
        else:
            waiting = owner.waiting.pop(ticket_id)
            self._num_bytes -= waiting.num_bytes
            self._num_waiting -= 1
            self._waiting_of[waiting.model] -= 1
            owner.served += TOKENS_OF_NOTHING
        if not owner.running and not owner.waiting:
            del self._owners[name]
            self._remember(name, owner.served)
        return ticket is not None

    def places(self) -> dict[str, Place]:
        """Return every ticket's place by its id, assuming that all tickets cost the same."""
        cost, turn = self._expected_cost(), self._turn_of()
        queues: dict[str, list[tuple[Any, ...]]] = {}
        for owner in self._owners.values():
            level = _level(owner, cost, self._now)
            for model, tickets in self._waiting_by_model(owner).items():
                entry = (*turn(owner, tickets[0]), level, tickets, 0)
                queues.setdefault(model, []).append(entry)
        places: dict[str, Place] = {}
        for model, queue in queues.items():
            for position, ticket_id in enumerate(_in_turn(queue, cost), 1):
                places[ticket_id] = Place(position, self.eta(position, model))
        return places

    def _waiting_by_model(self, owner: _Owner) -> dict[str, list[Ticket]]:
        """Return the owner's waiting tickets by model, or all under "" if there is one model."""
        if not self.bounds:
            return {"": list(owner.waiting.values())} if owner.waiting else {}
        tickets: dict[str, list[Ticket]] = {}
        for ticket in owner.waiting.values():
            tickets.setdefault(ticket.model, []).append(ticket)
        return tickets

    def eta(self, position: int, model: str = "") -> float | None:
        """Return the expected wait at this position, in seconds; None if nothing is known yet."""
        num_slots = self.num_slots
        if model in self.bounds:
            num_slots = min(num_slots or self.bounds[model], self.bounds[model])
        if not self._holds or not num_slots:
            return None
        return position * sum(self._holds) / len(self._holds) / num_slots

    def eta_of_new(self, owner: str, model: str = "") -> float | None:
        """Return the expected wait of a new ticket, in seconds; None if nothing is known yet.

        This is the best case: no later ticket of another owner overtakes it.
        """
        if self.would_start(model):
            return 0.0
        return self.eta(self._position_of_new(owner, model), model)

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again.

        The time is random, between half and all of the time that the queue needs to empty at the
        recent rate: so the queue never runs empty, and refused clients do not all return at once.
        """
        needed = self.eta(self._num_waiting + 1) or 1.0
        wanted = random.uniform(needed / 2, needed)  # noqa: S311 - no secret
        return max(1, min(round(wanted + 0.5), MAX_RETRY_AFTER_S))

    def _has_free_slot(self, model: str) -> bool:
        if self.num_slots and self._num_running >= self.num_slots:
            return False
        if model not in self.bounds:
            return True
        return self._running_of[model] + self.num_stopping_of(model) < self.bounds[model]

    def _start(self, owner: _Owner, ticket: Ticket, now: float) -> None:
        ticket.started_at = now
        owner.running[ticket.id] = ticket
        self._num_running += 1
        self._running_of[ticket.model] += 1

    def _turn_of(self) -> Callable[[_Owner, Ticket], tuple[bool, float, int, int]]:
        """Return a function that ranks owners by a waiting ticket: the lowest rank is next."""
        cost, now = self._expected_cost(), self._now

        def turn(owner: _Owner, head: Ticket) -> tuple[bool, float, int, int]:
            level = 0.0 if head.is_newcomer else _level(owner, cost, now)
            return not head.is_newcomer, level, len(owner.running), head.number

        return turn

    def _expected_cost(self) -> float:
        if not self._costs:
            return 0.0
        return sum(self._costs) / len(self._costs)

    def _position_of_new(self, name: str, model: str) -> int:
        """Return the position that a new ticket of this owner would get, among its model's."""
        cost = self._expected_cost()
        own = self._owners.get(name)
        waiting = {
            other: tickets
            for other, each in self._owners.items()
            if (tickets := self._waiting_by_model(each).get(model if self.bounds else ""))
        }
        level = max(self._levels.get(name, 0.0), self._lowest_level())
        if own is not None:
            level = _level(own, cost, self._now)
        elif self._levels.get(name, 0.0) <= level + cost:
            return 1 + sum(tickets[0].is_newcomer for tickets in waiting.values())
        mine = len(waiting.pop(name, ()))
        before = mine
        for other, tickets in waiting.items():
            # The other owner is served until its level reaches mine at my turn.
            lead = level + mine * cost - _level(self._owners[other], cost, self._now)
            turns = len(tickets) if not cost else max(0, int(lead / cost) + 1)
            before += min(len(tickets), turns)
        return before + 1

    def _lowest_level(self) -> float:
        """Return the lowest level of the waiting owners, else of the running ones, else 0."""
        here = self._owners.values()
        waiting = [each for each in here if each.waiting] or here
        # The expected cost of running tickets is left out: it may be too high, and a newcomer's
        # level would stay there.
        return min((_served(each, self._now) for each in waiting), default=0.0)

    def _remember(self, name: str, level: float) -> None:
        if not self._owners:  # usage is not counted while an owner is alone
            self._levels.clear()
            return
        self._levels[name] = level
        if len(self._levels) > MAX_LEVELS_KNOWN:
            self._levels.popitem(last=False)


def _in_turn(queue: list[tuple[Any, ...]], cost: float) -> Iterator[str]:
    """Yield the ids of waiting tickets in the order in which they get slots.

    An entry has an owner's rank, its level, its tickets and the index of the next one.
    """
    heapq.heapify(queue)
    while queue:
        *_, running, _, level, tickets, index = queue[0]
        yield tickets[index].id
        index += 1
        if index < len(tickets):
            level += max(cost, 1)
            entry = (True, level, running + 1, tickets[index].number, level, tickets, index)
            heapq.heapreplace(queue, entry)
        else:
            heapq.heappop(queue)


def _served(owner: _Owner, now: float) -> float:
    return owner.served + sum(ticket.work(now) for ticket in owner.running.values())


def _level(owner: _Owner, expected_cost: float, now: float) -> float:
    """Return the work that the owner has been served, plus what its running tickets may cost."""
    under_way = sum(
        max(ticket.work(now), expected_cost or ticket.max_tokens)
        for ticket in owner.running.values()
    )
    return owner.served + under_way
