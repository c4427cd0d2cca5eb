"""The tier in memory, against a model that is slow and plain."""

from hypothesis import given
from hypothesis import strategies as st

from cache.memory import Memory

KEYS = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 12), st.integers(0, 5), st.sampled_from(["", "1", "2"])),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("drop"), KEYS),
    st.tuples(st.just("wait"), st.integers(1, 3)),
    st.tuples(st.just("learn"), st.sampled_from(["", "1", "2"])),
)


def kind_of(key: str) -> str:
    return "early" if key < "d" else "late"


class Model:
    """A list, the one used last at its end."""

    def __init__(self, most_entries: int, most_bytes: int) -> None:
        self.most_entries, self.most_bytes = most_entries, most_bytes
        self.entries: list[tuple[str, bytes, int]] = []
        self.generations: dict[str, str] = {}

    def without(self, key: str) -> list[tuple[str, bytes, int]]:
        return [entry for entry in self.entries if entry[0] != key]

    def size(self) -> tuple[int, int]:
        return len(self.entries), sum(len(key) + len(value) for key, value, _ in self.entries)

    def put(self, key: str, value: bytes, until: int, now: int, generation: str) -> None:
        self.entries = self.without(key)
        known = self.generations.setdefault(kind_of(key), generation)
        if known != generation or until <= now or len(key) + len(value) > self.most_bytes or not self.most_entries:
            return
        self.entries.append((key, value, until))
        while len(self.entries) > self.most_entries or self.size()[1] > self.most_bytes:
            del self.entries[0]

    def get(self, key: str, now: int) -> bytes | None:
        found = [entry for entry in self.entries if entry[0] == key]
        self.entries = self.without(key) + [entry for entry in found if entry[2] > now]
        return next((value for _, value, until in found if until > now), None)

    def learn(self, generation: str) -> None:
        if self.generations.get("early") != generation:
            self.entries = [entry for entry in self.entries if kind_of(entry[0]) != "early"]
        self.generations["early"] = generation


@given(st.integers(0, 4), st.integers(0, 30), st.lists(STEPS, max_size=40))
def test_it_keeps_what_the_model_keeps(most_entries: int, most_bytes: int, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    now = 0
    memory, model = Memory(most_entries, most_bytes, clock=lambda: now), Model(most_entries, most_bytes)
    for step, *about in steps:
        if step == "put":
            key, size, ttl_s, generation = about
            memory.put(kind_of(key), key, b"x" * size, ttl_s, generation)
            model.put(key, b"x" * size, now + ttl_s, now, generation)
        elif step == "get":
            assert memory.get(about[0]) == model.get(about[0], now)
        elif step == "drop":
            memory.drop(about[0])
            model.entries = model.without(about[0])
        elif step == "wait":
            now += about[0]
        else:
            memory.learn("early", about[0])
            model.learn(about[0])
        assert memory.size() == model.size()
    for key in "abcdef":
        assert memory.get(key) == model.get(key, now)
