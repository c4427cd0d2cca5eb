"""Names every key that Forebay keeps in the broker's Redis, with its type and its lifetime.

The lists of waiting messages keep kombu's layout, so that Flower, KEDA, ``redis-cli llen`` and plain Celery
producers find them. Everything else lives below ``forebay:``. The Lua scripts build the same names from the
table that `lua` returns, so each name is written down once, here.
"""

from dataclasses import dataclass

SEPARATOR = "\x06\x16"

#: stem -> (Redis type, lifetime). A stem that ends in a colon is followed by a queue, a job or an owner.
STEMS = {
    "job": ("forebay:job:", "hash: the job's record; permanent until the job has ended, then a set time"),
    "once": ("forebay:once:", "string: idempotency key -> job id; a set time"),
    "delayed": ("forebay:delayed:", "sorted set: job id by due time; permanent, empty when nothing waits"),
    "alone": ("forebay:alone:", "sorted set: job id by due time, of jobs that must run alone; permanent, mostly empty"),
    "reserved": ("forebay:reserved:", "string: the owner that empties itself for a job that must run alone; seconds"),
    "leased": ("forebay:leased:", "sorted set: job id by time of fetch or start; permanent, empty when nothing runs"),
    "bell": ("forebay:bell:", "list of at most 64: rung by accept, awaited by idle workers; a minute"),
    "stats": ("forebay:stats:", "hash: cumulative counters of a queue; permanent"),
    "held": ("forebay:held:", "set: the job ids that one owner holds; gone when it holds none"),
    "owner": ("forebay:owner:", "hash: who an owner is (node, pid, queues); outlives its last renewal by an hour"),
    "owners": ("forebay:owners", "sorted set: owner by the end of its lease; swept"),
    "mail": ("forebay:mail:", "list: what an owner is to hear with its next renewal; an hour"),
    "gate": ("forebay:gate:", "hash: levels of a gate's buckets, until when it is shut, who waits; two days"),
    "breaker": ("forebay:breaker:", "hash: failures of a provider's model, until when it is left alone; an hour"),
    "breakers": ("forebay:breakers", "sorted set: breaker by its last change; an hour"),
    "refused": ("forebay:refused:", "set: owners to be rung when a queue that is full in flight has room; a minute"),
    "credit": ("forebay:credit:", "hash: what is owed to a queue's less urgent priorities; a day"),
    "pace": ("forebay:pace:", "string: how many jobs of a queue ended in ten seconds; two minutes"),
    "dead": ("forebay:dead", "sorted set: dead letter's job id by time of death; permanent"),
    "nameless": (
        "forebay:nameless:",
        "list: ids of waiting jobs whose message names none, by queue and SHA-1; permanent",
    ),
    "stream": ("forebay:stream:", "stream: a chat's text as it is written; retention.stream_s from the last write"),
    "group": ("forebay:group:", "hash: digests of a bulk group's jobs, how far it was sent; retention.dead_s"),
    "serial": ("forebay:serial", "string: numbers messages that carry no readable id; permanent"),
}

#: Prefixes of keys that may stand without a lifetime.
PERMANENT = tuple(
    STEMS[stem][0] for stem in ("delayed", "alone", "leased", "stats", "held", "owners", "dead", "nameless", "serial")
)


@dataclass(frozen=True)
class Keys:
    """Build keys below one prefix (Celery's ``global_keyprefix``; usually empty)."""

    prefix: str = ""

    def waiting(self, queue: str, step: int) -> str:
        """Return the list of waiting messages of one priority: pushed left, popped right."""
        return f"{self.prefix}{queue}{SEPARATOR}{step}" if step else f"{self.prefix}{queue}"

    def job(self, job_id: str) -> str:
        return self._key("job", job_id)

    def once(self, idempotency_key: str) -> str:
        return self._key("once", idempotency_key)

    def delayed(self, queue: str) -> str:
        return self._key("delayed", queue)

    def alone(self, queue: str) -> str:
        return self._key("alone", queue)

    def reserved(self, queue: str) -> str:
        return self._key("reserved", queue)

    def leased(self, queue: str) -> str:
        return self._key("leased", queue)

    def bell(self, queue: str) -> str:
        return self._key("bell", queue)

    def stats(self, queue: str) -> str:
        return self._key("stats", queue)

    def held(self, owner: str) -> str:
        return self._key("held", owner)

    def owner(self, owner: str) -> str:
        return self._key("owner", owner)

    def mail(self, owner: str) -> str:
        return self._key("mail", owner)

    def pace(self, queue_and_time: str) -> str:
        return self._key("pace", queue_and_time)

    def gate(self, name: str) -> str:
        return self._key("gate", name)

    def breaker(self, name: str) -> str:
        return self._key("breaker", name)

    def nameless(self, queue: str, digest: str) -> str:
        return self._key("nameless", f"{queue}:{digest}")

    def stream(self, job_id: str) -> str:
        return self._key("stream", job_id)

    def group(self, name: str) -> str:
        return self._key("group", name)

    def owners(self) -> str:
        return self._key("owners")

    def dead(self) -> str:
        return self._key("dead")

    def _key(self, stem: str, of: str = "") -> str:
        return f"{self.prefix}{STEMS[stem][0]}{of}"


def lua() -> str:
    """Return the Lua that builds the same keys: ``key.job(id)``, ``waiting(queue, step)``."""
    builders = "\n".join(
        f"function key.{stem}(of) return prefix .. '{name}' .. (of or '') end" for stem, (name, _) in STEMS.items()
    )
    return f"""
local prefix = ARGV[1]
local key = {{}}
{builders}
local function waiting(queue, step)
  if tonumber(step) == 0 then return prefix .. queue end
  return prefix .. queue .. '\\6\\22' .. step
end
"""
