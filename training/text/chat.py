"""Writes chats: greetings, stories on request, questions about them and about rill, refusals.

A chat is a list of exchanges: the user says something and rill answers. Most chats begin with one
of the openers below and continue with a few small exchanges that fit.
"""

import random
from dataclasses import dataclass

from training.text.cast import HE, SHE, Sort, draw_name
from training.text.exposition import explain, topics
from training.text.lists import rules, sections
from training.text.phrase import capitalised, expand
from training.text.request import ANYTHING, draw_subject, draw_theme
from training.text.split import Split
from training.text.story import Story, write_story

SYSTEM_SHARE = 0.25
IDENTITY = ("who", "who", "can", "size", "maker", "alive", "where", "why", "like")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


class Chat:
    """A conversation that is being written."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split = split
        self.messages: list[Message] = []
        self.combinations: list[tuple[str, str, str]] = []
        if rng.random() < SYSTEM_SHARE:
            self.messages.append(Message("system", self.pick("requests", "system")))

    def pick(self, name: str, title: str, **slots: str) -> str:
        """Choose a line from the section `title` of the word list `name`, and expand it."""
        return expand(self.rng.choice(sections(name)[title]), slots, rules(), self.rng)

    def exchange(self, user: str, answer: str) -> None:
        self.messages += [Message("user", user), Message("assistant", answer)]

    def greet(self) -> None:
        user = draw_name(self.rng, Sort.CHILD, self.rng.choice((SHE, HE)))
        line = self.rng.choice(sections("smalltalk")["greeting"])
        answer = "named_answer" if "{user}" in line else "greeting_answer"
        said = expand(line, {"user": user}, rules(), self.rng)
        self.exchange(said, self.pick("smalltalk", answer, user=user))

    def small_talk(self, title: str) -> None:
        self.exchange(self.pick("smalltalk", title), self.pick("smalltalk", f"{title}_answer"))

    def ask_about_rill(self) -> None:
        title = self.rng.choice(IDENTITY)
        self.exchange(self.pick("identity", f"ask_{title}"), self.pick("identity", f"tell_{title}"))

    def refuse(self) -> None:
        suffix = "_math" if self.rng.random() < 0.25 else ""
        n, m = (str(self.rng.randint(1, 99)) for _ in range(2))
        question = self.pick("refusals", f"ask{suffix}", n=n, m=m)
        self.exchange(question, self.pick("refusals", f"answer{suffix}"))

    def explain(self) -> None:
        topic = self.rng.choice(topics())
        self.exchange(self.pick("requests", "explain", topic=topic), explain(self.rng, topic))

    def story(self, request: str | None = None) -> Story:
        """Tell a story on request.

        The user asks for a subject, or says `request`, which names no subject.
        """
        rng = self.rng
        roll = rng.random()
        subject, wish = draw_subject(rng, self.split) if request is None else ANYTHING
        story = write_story(rng, self.split, wish, liveliness=rng.choice((0.0, 0.2, 0.5)))
        if request is None and roll < 0.2:
            story = write_story(rng, self.split, liveliness=rng.choice((0.0, 0.2, 0.5)))
            subject = draw_theme(rng, story.scene)
        answer = story.text
        if subject:
            request = self.pick("requests", "story", subject=subject)
            request = capitalised(request) if rng.random() < 0.7 else request
            if rng.random() < 0.2:
                answer = f"{self.pick('requests', 'preface', subject=subject)}\n\n{answer}"
        assert request is not None
        self.exchange(request, answer)
        self.combinations += story.combinations
        return story

    def ask_about(self, story: Story, count: int) -> None:
        for question, answer in story.questions()[:count]:
            asked = question if self.rng.random() < 0.7 else question.rstrip("?").lower()
            self.exchange(asked, answer)

    def after_story(self, story: Story) -> None:
        """Add exchanges that follow a story: questions, thanks, a goodbye."""
        rng = self.rng
        if rng.random() < 0.6:
            self.ask_about(story, rng.randint(1, 3))
        if rng.random() < 0.3:
            self.small_talk("thanks")
        if rng.random() < 0.15:
            self.small_talk("bye")


def write_chat(rng: random.Random, split: Split) -> Chat:
    """Write a chat of one to about eight exchanges."""
    chat = Chat(rng, split)
    roll = rng.random()
    if roll < 0.50:
        if rng.random() < 0.2:
            chat.greet()
        chat.after_story(chat.story())
    elif roll < 0.58:
        chat.after_story(chat.story(chat.pick("requests", "any")))
    elif roll < 0.72:
        _talk(chat)
    elif roll < 0.84:
        for _ in range(rng.randint(1, 4)):
            chat.ask_about_rill()
        _maybe_story(chat, 0.15)
    elif roll < 0.93:
        for _ in range(rng.randint(1, 3)):
            chat.refuse()
        _maybe_story(chat, 0.2)
    else:
        chat.explain()
        if rng.random() < 0.3:
            chat.small_talk("thanks")
    return chat


def _talk(chat: Chat) -> None:
    rng = chat.rng
    chat.greet()
    if rng.random() < 0.4:
        chat.small_talk("how")
        if rng.random() < 0.6:
            chat.small_talk(rng.choice(("fine", "feeling")))
    if rng.random() < 0.3:
        chat.ask_about_rill()
    if rng.random() < 0.35:
        chat.after_story(chat.story(chat.pick("smalltalk", "yes")))
    elif rng.random() < 0.4:
        chat.small_talk("bye")


def _maybe_story(chat: Chat, share: float) -> None:
    if chat.rng.random() < share:
        words = chat.pick("requests", "any")
        chat.story(words if chat.rng.random() < 0.4 else None)
