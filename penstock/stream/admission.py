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
- A *newcomer* is an owner that arrives while it has nothing running and nothing waiting, unless its
  own level is ahead of that lowest level by more than the average work of a ticket. Its first
  ticket goes before the tickets of all others; several newcomers start in the order of arrival.

(The idea is virtual time in fair queueing, and the virtual token counter:
https://arxiv.org/abs/2401.00588.)
"""

import collections
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(eq=False, slots=True)
class Ticket:
    """A request, as admission sees it.

    `tokens` returns how many tokens of prompt and answer it has had. `max_tokens` is its assumed
    work until other tickets have shown what one costs. `num_bytes` is its memory while it waits.
    `is_newcomer` is True for the first ticket of a newcomer.
    """

    id: str
    owner: str
    max_tokens: int
    tokens: Callable[[], int] = lambda: 0
    num_bytes: int = 0
    number: int = 0
    started_at: float = 0.0
    is_newcomer: bool = False

    def work(self, now: float) -> float:
        """Return what the ticket has cost so far, in tokens, while it has a slot."""
        tokens = self.tokens() or TOKENS_OF_NOTHING
        return tokens + TOKENS_PER_SECOND * (now - self.started_at)


@dataclass(frozen=True)
class Place:
    """A place in the queue; `position` 1 is next. `eta` is the expected wait in seconds."""

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

    @property
    def would_start(self) -> bool:
        """Return True if a new ticket would get a slot at once, if an engine can start it."""
        return not self._num_waiting and self._has_free_slot()

    def has_room(self, owner: str, num_bytes: int = 0) -> bool:
        """Return True if a ticket of this owner would get a slot or a place in the queue."""
        if self._has_free_slot() and not self._num_waiting:
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
        # If tickets wait although a slot is free, they are held back, and so is this one.
        if can_start and self._has_free_slot() and not self._num_waiting:
            self._start(owner, ticket, now)
            return True
        owner.waiting[ticket.id] = ticket
        self._num_waiting += 1
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
        self._num_bytes += ticket.num_bytes

    def next(self, now: float) -> Ticket | None:
        """Give a free slot to the next ticket; return None if there is no slot or no ticket."""
        if not self._num_waiting or not self._has_free_slot():
            return None
        self._now = now
        waiting = [owner for owner in self._owners.values() if owner.waiting]
        owner = min(waiting, key=self._turn_of())
        _, ticket = owner.waiting.popitem(last=False)
        self._num_waiting -= 1
        self._num_bytes -= ticket.num_bytes
        self._start(owner, ticket, now)
        return ticket

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
            owner.served += work
            self._costs.append(work)
            self._holds.append(now - ticket.started_at)
        else:
            self._num_bytes -= owner.waiting.pop(ticket_id).num_bytes
            self._num_waiting -= 1
            owner.served += TOKENS_OF_NOTHING
        if not owner.running and not owner.waiting:
            del self._owners[name]
            self._remember(name, owner.served)
        return ticket is not None

    def places(self) -> dict[str, Place]:
        """Return every ticket's place by its id, assuming that all tickets cost the same."""
        cost, turn = self._expected_cost(), self._turn_of()
        queues = [
            (*turn(owner), _level(owner, cost, self._now), list(owner.waiting.values()), 0)
            for owner in self._owners.values()
            if owner.waiting
        ]
        heapq.heapify(queues)
        places: dict[str, Place] = {}
        while queues:
            *_, running, _, level, tickets, index = queues[0]
            places[tickets[index].id] = Place(len(places) + 1, self.eta(len(places) + 1))
            index += 1
            if index < len(tickets):
                level += max(cost, 1)
                number = tickets[index].number
                entry = (True, level, running + 1, number, level, tickets, index)
                heapq.heapreplace(queues, entry)
            else:
                heapq.heappop(queues)
        return places

    def eta(self, position: int) -> float | None:
        """Return the expected wait at this position, in seconds; None if nothing is known yet."""
        if not self._holds or not self.num_slots:
            return None
        return position * sum(self._holds) / len(self._holds) / self.num_slots

    def eta_of_new(self, owner: str) -> float | None:
        """Return the expected wait of a new ticket, in seconds; None if nothing is known yet.

        This is the best case: no later ticket of another owner overtakes it.
        """
        if self._has_free_slot() and not self._num_waiting:
            return 0.0
        return self.eta(self._position_of_new(owner))

    def retry_after(self) -> int:
        """Return the seconds after which a refused client should try again.

        The time is random, between half and all of the time that the queue needs to empty at the
        recent rate: so the queue never runs empty, and refused clients do not all return at once.
        """
        needed = self.eta(self._num_waiting + 1) or 1.0
        wanted = random.uniform(needed / 2, needed)  # noqa: S311 - no secret
        return max(1, min(round(wanted + 0.5), MAX_RETRY_AFTER_S))

    def _has_free_slot(self) -> bool:
        return not self.num_slots or self._num_running < self.num_slots

    def _num_waiting_of(self, name: str) -> int:
        owner = self._owners.get(name)
        return len(owner.waiting) if owner is not None else 0

    def _start(self, owner: _Owner, ticket: Ticket, now: float) -> None:
        ticket.started_at = now
        owner.running[ticket.id] = ticket
        self._num_running += 1

    def _turn_of(self) -> Callable[[_Owner], tuple[bool, float, int, int]]:
        """Return a function that ranks waiting owners: the lowest rank is next."""
        cost, now = self._expected_cost(), self._now

        def turn(owner: _Owner) -> tuple[bool, float, int, int]:
            head = next(iter(owner.waiting.values()))
            level = 0.0 if head.is_newcomer else _level(owner, cost, now)
            return not head.is_newcomer, level, len(owner.running), head.number

        return turn

    def _expected_cost(self) -> float:
        if not self._costs:
            return 0.0
        return sum(self._costs) / len(self._costs)

    def _position_of_new(self, name: str) -> int:
        """Return the position that a new ticket of this owner would get."""
        cost = self._expected_cost()
        own = self._owners.get(name)
        level = max(self._levels.get(name, 0.0), self._lowest_level())
        if own is not None:
            level = _level(own, cost, self._now)
        elif self._levels.get(name, 0.0) <= level + cost:
            return 1 + sum(
                next(iter(each.waiting.values())).is_newcomer
                for each in self._owners.values()
                if each.waiting
            )
        mine = self._num_waiting_of(name)
        before = mine
        for other_name, other in self._owners.items():
            if other_name == name or not other.waiting:
                continue
            # The other owner is served until its level reaches mine at my turn.
            lead = level + mine * cost - _level(other, cost, self._now)
            turns = len(other.waiting) if not cost else max(0, int(lead / cost) + 1)
            before += min(len(other.waiting), turns)
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


def _served(owner: _Owner, now: float) -> float:
    return owner.served + sum(ticket.work(now) for ticket in owner.running.values())


def _level(owner: _Owner, expected_cost: float, now: float) -> float:
    """Return the work that the owner has been served, plus what its running tickets may cost."""
    under_way = sum(
        max(ticket.work(now), expected_cost or ticket.max_tokens)
        for ticket in owner.running.values()
    )
    return owner.served + under_way
